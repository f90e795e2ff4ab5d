from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protoseg.evaluation import pictures
from protoseg.evaluation.curves import curves_figure
from protoseg.types import LabelSpace, ProtosegError

SPACE = LabelSpace("toy", ("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
LABEL = torch.tensor([[0, 1, 2, -1], [2, 2, 0, 1]])
IMAGE = torch.full((3, 2, 4), 200, dtype=torch.uint8)


def many(n: int) -> LabelSpace:
    return LabelSpace("many", tuple(f"class {i}" for i in range(n)), tuple((i % 256, 0, 0) for i in range(n)))


def test_colorize() -> None:
    got = pictures.colorize(LABEL, SPACE)
    assert got.shape == (2, 4, 3)
    assert got.dtype == np.uint8
    for y in range(2):
        for x in range(4):
            i = int(LABEL[y, x])
            assert tuple(got[y, x]) == ((0, 0, 0) if i == -1 else SPACE.colors[i])


def test_overlay_mixes_and_dims_ignored_pixels() -> None:
    got = pictures.overlay(IMAGE, LABEL, SPACE, alpha=0.5)
    assert tuple(got[0, 0]) == (164, 132, 164)
    assert tuple(got[0, 3]) == (70, 70, 70)
    assert (pictures.overlay(IMAGE, LABEL, SPACE, alpha=0.0)[1] == 200).all()
    assert np.array_equal(got, pictures.overlay(IMAGE.float() / 255, LABEL, SPACE, alpha=0.5))


def test_error_map_marks_wrong_pixels_only() -> None:
    prediction = LABEL.clone()
    prediction[0, 3] = 1
    prediction[1, 0] = 0
    got = pictures.error_map(IMAGE, LABEL, prediction, SPACE).astype(int)
    reddish = got[..., 0] - got[..., 1] > 50
    assert reddish.sum() == 1
    assert reddish[1, 0]
    assert (got[0, 3] == 70).all()
    assert (got[0, 0] > 200).all()


def test_label_png_keeps_ids_and_shows_colours(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    pictures.label_png(LABEL, SPACE, path)
    picture = Image.open(path)
    assert picture.mode == "P"
    assert np.array(picture).tolist() == [[0, 1, 2, 255], [2, 2, 0, 1]]
    assert np.array_equal(np.array(picture.convert("RGB")), pictures.colorize(LABEL, SPACE))


def test_label_png_of_more_classes_than_a_palette_holds(tmp_path: Path) -> None:
    label = torch.tensor([[0, 255, 299, -1]])
    pictures.label_png(label, many(300), tmp_path / "label.png")
    picture = Image.open(tmp_path / "label.png")
    assert picture.mode.startswith("I")
    assert np.array(picture).tolist() == [[0, 255, 299, 65535]]


def test_pictures_of_847_classes_stay_readable(tmp_path: Path) -> None:
    space = many(847)
    shares = np.linspace(0, 1, 847)
    figure = pictures.bars_figure({"train": shares, "val": shares[::-1]}, space, "title")
    assert len(figure.axes[0].get_yticklabels()) == 40
    figure = pictures.bars_figure({"train": shares}, space, "title")
    assert figure.axes[0].get_yticklabels()[0].get_text() == "class 846"
    assert pictures.frequent_classes(shares[:255]) == list(range(255))
    confusion = {pictures.CONFUSION: torch.eye(847, dtype=torch.int64)}
    pictures.confusions_figure(confusion, space).savefig(tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").width < 2500
    label = torch.full((200, 300), 255)
    label[:50], label[50:100] = 846, -1
    got = pictures.panel(torch.zeros(3, 200, 300, dtype=torch.uint8), label, label.clamp(max=846), space)
    assert got.shape[0] < 200 + 30 + 40
    assert tuple(pictures.overlay(torch.zeros(3, 200, 300), label, space, alpha=1)[150, 0]) == space.colors[255]
    assert pictures.short_name("a list, of, many, other, names, of one thing") == "a list, of, many, other, name…"


@pytest.mark.parametrize("wrong", [3, -2, 255])
def test_ids_outside_the_label_space(wrong: int) -> None:
    with pytest.raises(ProtosegError, match=rf"expected ids 0 to 2 or -1 of label space 'toy', got \[{wrong}\]"):
        pictures.colorize(torch.tensor([[0, wrong]]), SPACE)


@pytest.mark.parametrize("width", [60, 400])
def test_legend_shows_every_class_at_any_width(width: int) -> None:
    def colors(space: LabelSpace, shown: list[int]) -> set[tuple[int, ...]]:
        got = pictures.legend(space, width, shown)
        assert got.shape[1] == width
        return {tuple(color) for color in got.reshape(-1, 3).tolist()}

    assert colors(SPACE, [0, -1]) >= {*SPACE.colors, (0, 0, 0)}
    assert (0, 0, 0) not in colors(SPACE, [0])  # nothing is ignored
    assert {color for color in colors(many(200), [150]) if color[0] > 0 == color[1]} == {(150, 0, 0)}


def test_ignored_pixels_have_no_class_colour(tmp_path: Path) -> None:
    space = LabelSpace("voc", ("background", "person"), ((0, 0, 0), (192, 128, 128)))
    got = pictures.colorize(torch.tensor([[0, 1, -1]]), space)[0]
    assert got.tolist() == [[0, 0, 0], [192, 128, 128], [255, 255, 255]]
    pictures.label_png(torch.tensor([[0, 1, -1]]), space, tmp_path / "label.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "label.png").convert("RGB"))[0], got)


def test_panel_holds_all_four_pictures() -> None:
    label = torch.zeros(200, 300, dtype=torch.int64)
    label[:, 150:], label[:20] = 1, -1
    prediction = label.clone()
    prediction[label == -1] = 2
    prediction[100:, :50] = 2
    image = torch.randint(256, (3, 200, 300), dtype=torch.uint8)
    got = pictures.panel(image, label, prediction, SPACE)
    assert got.shape[1] == 4 * 300 + 5 * pictures.MARGIN
    tiles = [
        image.permute(1, 2, 0).numpy(),
        pictures.overlay(image, label, SPACE),
        pictures.overlay(image, prediction, SPACE),
        pictures.error_map(image, label, prediction, SPACE),
    ]
    for i, tile in enumerate(tiles):
        x = pictures.MARGIN + i * (300 + pictures.MARGIN)
        assert np.array_equal(got[30:230, x : x + 300], tile)


@pytest.mark.parametrize(("shape", "width"), [((20, 40), 280), ((500, 1000), 640)])
def test_panel_brings_pictures_to_a_readable_size(shape: tuple[int, int], width: int) -> None:
    label = torch.full(shape, -1)
    got = pictures.panel(torch.zeros(3, *shape, dtype=torch.uint8), label, torch.zeros_like(label), SPACE)
    assert got.shape[1] == 4 * width + 5 * pictures.MARGIN


def test_panel_of_many_classes_names_only_those_shown() -> None:
    space, label = many(200), torch.full((200, 300), 7)
    got = pictures.panel(torch.zeros(3, 200, 300, dtype=torch.uint8), label, label, space)
    assert got.shape[0] < 200 + 30 + 40


@pytest.mark.parametrize(("n", "text"), [(3, True), (19, True), (41, False)])
def test_confusion_figure(n: int, text: bool, tmp_path: Path) -> None:
    confusion = torch.eye(n, dtype=torch.int64) * 3
    confusion[0, 1] = 1
    confusion[2] = 0
    figure = pictures.confusions_figure({pictures.CONFUSION: confusion}, many(n))
    axes = figure.axes[0]
    share = axes.images[0].get_array()
    assert share[0, 0] == 0.75
    assert share[0, 1] == 0.25
    assert np.isnan(np.asarray(share)[2]).all()
    cells = [t.get_text() for t in axes.texts]
    assert cells == (["75", "25"] + ["100"] * (n - 2) if text else [])
    assert [t.get_text() for t in axes.get_yticklabels()] == list(many(n).classes)
    figure.savefig(tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").width > 300


def test_heatmap_is_a_picture() -> None:
    values = np.random.default_rng(0).random((11, 10))
    got = pictures.heatmap_figure(values, [f"class {i}" for i in range(11)], "occupancy")
    assert got.dtype == np.uint8
    assert got.ndim == 3
    assert got.shape[2] == 3
    assert len(np.unique(got.reshape(-1, 3), axis=0)) > 50


def test_curves_of_many_classes_can_be_told_apart(tmp_path: Path) -> None:
    names = [f"val/IoU/class {i}" for i in range(60)]
    (tmp_path / "logs").mkdir()
    lines = [",".join(["step", "val/mIoU", *names]), *(f"{s},0.51{s}" + f",0.{s}" * 60 for s in range(1, 4))]
    (tmp_path / "logs" / "metrics.csv").write_text("\n".join(lines) + "\n")
    figure = curves_figure(tmp_path)
    charts = {axes.get_title(): axes for axes in figure.axes}
    assert list(charts) == ["validation", "IoU by class, the 40 lowest"]
    drawn = charts["IoU by class, the 40 lowest"].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == len(drawn) == 40
    assert all(axes.get_ylim() == (0, 1) for axes in figure.axes)  # half a point is no trend
    height, width = pictures.figure_picture(figure).shape[:2]
    for axes in figure.axes:
        box = axes.get_legend().get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height


JUDGED = "step,train/loss,val/mIoU,val/IoU/road\n"


@pytest.mark.parametrize("log", [JUDGED, JUDGED + "1,0.5,,\n2,0.4,0.3,0.1\n", "step,train/loss\n1,0.5\n2,0.4\n"])
def test_curves(log: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text(log)
    curves_figure(tmp_path).savefig(tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 1000


def test_importing_does_not_load_matplotlib() -> None:
    code = "import protoseg.evaluation.pictures, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
