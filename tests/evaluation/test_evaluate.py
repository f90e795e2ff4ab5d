from __future__ import annotations

import csv
import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from protoseg import __version__
from protoseg.evaluation import metrics
from protoseg.evaluation.evaluate import evaluate
from protoseg.evaluation.pictures import overlay, panel
from protoseg.evaluation.predictor import Predictor
from protoseg.evaluation.writer import output_names
from protoseg.files import write_file
from protoseg.types import Batch, LabelSpace, ProtosegError, SegOutput

SPACE = LabelSpace("toy", ("road", "sky", "car", "tram"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (250, 170, 30)))
SIZES = [(24, 40), (17, 33), (24, 40), (30, 20), (17, 33)]
RED_PER_CLASS = 50


class Reader(nn.Module):
    """Reads the class of every fourth pixel off its red value, so that what it predicts is known."""

    stride = 4
    num_classes = 4

    def forward(self, image: Tensor) -> SegOutput:
        x = F.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
        ids = (x[:, 0, 1::4, 1::4].long() // RED_PER_CLASS).clamp_max(3)
        logits = 10 * F.one_hot(ids, 4).permute(0, 3, 1, 2).float()
        return SegOutput(logits, logits)


class Scenes(Dataset[Any]):
    def __init__(self, sizes: Sequence[tuple[int, int]] = tuple(SIZES), void: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.items, self.samples = [], []
        for i, (h, w) in enumerate(sizes):
            # Blocks of one class: "tram" never occurs.
            blocks = torch.randint(3, (1, 1, -(-h // 8), -(-w // 8)), generator=generator)
            label = F.interpolate(blocks.double(), scale_factor=8)[0, 0, :h, :w].long()
            image = torch.randint(256, (3, h, w), generator=generator, dtype=torch.uint8)
            image[0] = (label * RED_PER_CLASS + 25).byte()
            label[:3] = -1
            name = f"/data/{'ab'[i % 2]}/{i // 2}.png"
            self.items.append((image, torch.full_like(label, -1) if void else label, name))
            self.samples.append((Path(name), None))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pad(samples: list[Any]) -> Batch:
    """Padded with a picture of "sky", so that a look at the padding would change the numbers."""
    sizes = [tuple(label.shape) for _, label, _ in samples]
    h, w = (max(side) for side in zip(*sizes, strict=True))
    return Batch(
        torch.stack([F.pad(x, (0, w - x.shape[2], 0, h - x.shape[1]), value=75) for x, _, _ in samples]),
        torch.stack([F.pad(y, (0, w - y.shape[1], 0, h - y.shape[0]), value=-1) for _, y, _ in samples]),
        torch.tensor(sizes),
        [name for _, _, name in samples],
    )


def loader(batch_size: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(Scenes(**options), batch_size=batch_size, collate_fn=pad)


def run(output: Path, data: DataLoader[Any], **options: Any) -> dict[str, Any]:
    return evaluate(Reader(), data, Predictor(), SPACE, output, "cpu", **options)


def without_time(result: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in result.items() if k not in ("seconds", "images_per_second")})


def test_numbers_and_files_do_not_depend_on_batch_size(tmp_path: Path) -> None:
    results = [run(tmp_path / str(b), loader(b)) for b in (1, 3)]
    assert without_time(results[0]) == without_time(results[1])
    for path in (tmp_path / "1").rglob("*.png"):
        twin = tmp_path / "3" / path.relative_to(tmp_path / "1")
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(twin)))


def test_numbers_are_those_of_the_label_files(tmp_path: Path) -> None:
    result = run(tmp_path, loader())
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    for _, label, name in Scenes().items:
        written = Image.open(tmp_path / "labels" / Path(name).relative_to("/data"))
        assert written.mode == "P"
        confusion += metrics.confusion_matrix(torch.from_numpy(np.array(written).astype(np.int64)), label, 4)
    want = metrics.scores(confusion)
    assert 0.5 < result["mIoU"] == want["mIoU"] < 1
    assert [c["IoU"] for c in result["classes"][:3]] == want["IoU"][:3].tolist()
    assert result["num_images"] == 5
    assert np.array_equal(np.load(tmp_path / "confusion.npy"), confusion.numpy())


def test_report_files(tmp_path: Path) -> None:
    predictor = Predictor("slide", crop_size=16, scales=(1.0,), flip=True)
    result = evaluate(Reader(), loader(), predictor, SPACE, tmp_path, "cpu")

    def forbid(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=forbid)
    assert saved["mIoU"] == result["mIoU"]
    assert math.isnan(result["classes"][3]["IoU"])
    assert saved["classes"][3]["IoU"] is None
    assert (saved["data"], saved["version"]) == (os.path.abspath("/data"), __version__)
    assert saved["inference"] == {
        "mode": "slide",
        "crop_size": [16, 16],
        "stride": [10, 10],
        "scales": [1.0],
        "flip": True,
    }
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == [*SPACE.classes, "mean"]
    assert float(rows[-1]["IoU"]) == result["mIoU"]
    assert rows[3]["IoU"] == ""
    assert f"| road | {100 * result['classes'][0]['IoU']:.2f} |" in (tmp_path / "table.md").read_text()
    counts = list(csv.reader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert counts[0][1:] == list(SPACE.classes)
    assert counts[1][0] == "road"
    assert sum(int(cell) for row in counts[1:] for cell in row[1:]) == np.load(tmp_path / "confusion.npy").sum()
    assert Image.open(tmp_path / "confusion.png").width > 300
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_pictures(tmp_path: Path) -> None:
    run(tmp_path, loader())
    image, label, _ = Scenes().items[1]
    names = {"a/0", "a/1", "a/2", "b/0", "b/1"}
    for kind, suffix in (("labels", ".png"), ("overlays", ".jpg"), ("panels", ".jpg")):
        folder = tmp_path / kind
        assert {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*" + suffix)} == names
    prediction = Predictor().predict(Reader(), image[None], torch.tensor([label.shape]))[0]
    for kind, picture in (
        ("overlays", overlay(image, prediction, SPACE)),
        ("panels", panel(image, label, prediction, SPACE)),
    ):
        coded = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 92, colorsubsampling="420")
        assert (tmp_path / kind / "b" / "0.jpg").read_bytes() == coded


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (2, 2), (None, 5)])
def test_max_overlays_leaves_labels_alone(limit: int | None, count: int, tmp_path: Path) -> None:
    run(tmp_path, loader(), max_overlays=limit)
    assert len(list(tmp_path.glob("overlays/*/*"))) == len(list(tmp_path.glob("panels/*/*"))) == count
    assert len(list(tmp_path.glob("labels/*/*"))) == 5


def test_save_chooses(tmp_path: Path) -> None:
    run(tmp_path, loader(), save=["labels"])
    assert (tmp_path / "labels").is_dir()
    assert not (tmp_path / "overlays").exists()
    assert (tmp_path / "table.md").is_file()


def test_all_pixels_ignored(tmp_path: Path) -> None:
    result = run(tmp_path, loader(void=True))
    assert math.isnan(result["mIoU"])
    assert math.isnan(result["pixel_accuracy"])
    assert json.loads((tmp_path / "metrics.json").read_text())["mIoU"] is None
    assert (tmp_path / "confusion.png").is_file()
    assert "–" in (tmp_path / "table.md").read_text()


def test_subset_of_classes(tmp_path: Path) -> None:
    result = run(tmp_path, loader(), subsets={"above": ["sky"]})
    assert result["mIoU_above"] == result["classes"][1]["IoU"] != result["mIoU"]


def test_a_class_that_the_data_do_not_label_is_in_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Trams(Reader):
        """Calls the left of every picture a tram."""

        def forward(self, image: Tensor) -> SegOutput:
            logits = super().forward(image).logits.clone()
            logits[:, 3, :, :2] = 99
            return SegOutput(logits, logits)

    told = evaluate(Trams(), loader(), Predictor(), SPACE, tmp_path, "cpu", ())
    result = evaluate(Trams(), loader(), Predictor(), SPACE, tmp_path, "cpu", (), unlabelled=[3])
    assert result["classes"][3]["predicted_pixels"] > 0
    assert result["mIoU"] == pytest.approx(told["mIoU"] * 4 / 3)
    assert [entry["IoU"] for entry in result["classes"][:3]] == [entry["IoU"] for entry in told["classes"][:3]]
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert (saved["classes_in_means"], saved["classes_not_labelled"]) == (["road", "sky", "car"], ["tram"])
    assert (saved["classes"][3]["IoU"], saved["classes"][3]["predicted_pixels"] > 0) == (None, True)
    table = (tmp_path / "table.md").read_text()
    assert "| tram | – | – | not labelled here |" in table
    assert f"| mean of 3 | {100 * result['mIoU']:.2f} |" in table
    printed = capsys.readouterr().out
    assert "mean of 4" in printed
    assert "mean of 3" in printed


def test_terminal_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path, loader())
    out = capsys.readouterr().out
    assert f"mIoU {100 * result['mIoU']:.2f} %" in out
    assert "sky" in out
    assert str(tmp_path) in out


@pytest.mark.parametrize("training", [True, False])
def test_model_runs_in_eval_mode_and_gets_its_mode_back(training: bool, tmp_path: Path) -> None:
    class Strict(Reader):
        def forward(self, image: Tensor) -> SegOutput:
            assert not self.training
            return super().forward(image)

    model = Strict().train(training)
    evaluate(model, loader(), Predictor(), SPACE, tmp_path, "cpu", save=())
    assert model.training is training


def test_interrupted_run_keeps_what_is_written(tmp_path: Path) -> None:
    class Stops(Reader):
        images = 0

        def forward(self, image: Tensor) -> SegOutput:
            self.images += len(image)
            if self.images > 3:
                raise KeyboardInterrupt
            return super().forward(image)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(), loader(1), Predictor(), SPACE, tmp_path, "cpu")
    assert len(list(tmp_path.glob("labels/*/*.png"))) == 3
    for path in tmp_path.rglob("*.*"):
        Image.open(path).load()


def test_failed_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def full(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(ProtosegError, match=r"cannot write .*x.txt: No space left"):
        write_file(path, full)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"x\.txt: No space left on device \([\d.]+ MB free\)\. What was written before is kept"),
        (errno.EROFS, r"x\.txt: Read-only file system \(the folder is read-only, or another user's\)"),
        (errno.EACCES, r"x\.txt: Permission denied \(the folder is read-only, or another user's\)"),
    ],
)
def test_what_the_disk_says(number: int, message: str, tmp_path: Path) -> None:
    def refuse(partial: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(ProtosegError, match=message):
        write_file(tmp_path / "x.txt", refuse)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProtosegError, match=r"cannot write .*choose another folder"):
        run(tmp_path / "file", loader())


def test_output_names() -> None:
    paths = ["/d/b/x.jpg", "/d/a/x.jpg", "/d/a/x.png", "/d/a/X.jpeg", "/d/a/x_2.png", "/d/a/y.z.png"]
    names = output_names(paths)
    assert names["/d/b/x.jpg"] == Path("b/x")
    assert names["/d/a/y.z.png"] == Path("a/y.z")
    assert len({str(name).lower() for name in names.values()}) == len(paths)
    assert (names["/d/a/x.jpg"], names["/d/a/x_2.png"]) == (Path("a/x.jpg"), Path("a/x_2"))
    late = output_names(["/d/a.png"]), output_names(["/d/a.jpg", "/d/a.png"])
    assert late[0]["/d/a.png"] not in {*late[1].values()}  # what was written of the one is never taken for another's
    same = output_names(["/d/a.jpg", "/d/A.jpg"])  # one file on some disks
    assert {*map(str, same.values())} == {"A.jpg", "a.jpg_2"}
    assert output_names(["/d/a/x.jpg"]) == {"/d/a/x.jpg": Path("x")}
    assert output_names(["/d/a/x.jpg"], Path("/d")) == {"/d/a/x.jpg": Path("a/x")}
    assert output_names(["a/x.jpg", "b/x.jpg"]) == {"a/x.jpg": Path("a/x"), "b/x.jpg": Path("b/x")}


def test_unknown_save(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="save: expected names out of overlays, panels, labels, got masks"):
        run(tmp_path, loader(), save=("labels", "masks"))


def test_model_of_other_classes(tmp_path: Path) -> None:
    model = Reader()
    model.num_classes = 19
    with pytest.raises(ProtosegError, match="expected a model of the 4 classes of label space 'toy', got one of 19"):
        evaluate(model, loader(), Predictor(), SPACE, tmp_path, "cpu")


class Wide(Reader):
    """Of 847 classes; says class 255 of what the others call 0, else 846 less the class."""

    num_classes = 847

    def forward(self, image: Tensor) -> SegOutput:
        ids = super().forward(image).logits.argmax(1)
        logits = F.one_hot(torch.where(ids == 0, 255, 846 - ids), 847).permute(0, 3, 1, 2).float()
        return SegOutput(logits, logits)


def test_847_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = LabelSpace(
        "wide", tuple(f"class {i}" for i in range(847)), tuple((i % 256, i // 256, 7) for i in range(847))
    )
    data = loader(batch_size=1)
    for i, (image, label, name) in enumerate(data.dataset.items):  # type: ignore[attr-defined]
        wide = torch.where(label == 0, 255, 846 - label)
        data.dataset.items[i] = image, torch.where(label == -1, -1, wide), name  # type: ignore[attr-defined]
    result = evaluate(Wide(), data, Predictor(), space, tmp_path, "cpu")
    assert result["classes"][255]["IoU"] > 0.5
    assert sum(entry["true_pixels"] > 0 for entry in result["classes"]) == 3
    shown = capsys.readouterr().out
    assert "class 255" in shown
    assert "807 more: table.csv" in shown
    written = np.array(Image.open(next((tmp_path / "labels").rglob("*.png"))))
    assert {255, 845} <= set(np.unique(written)) <= {255, 843, 844, 845, 846}
