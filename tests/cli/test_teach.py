"""``protoseg teach``, from a checkpoint to its evaluation with other classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from protoseg.checkpoint import checkpoint_label_space, read_checkpoint, save_checkpoint
from protoseg.cli.main import run_tool
from protoseg.data import CAMVID, SegmentationDataModule, Streets
from protoseg.run.build import build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.teach import trial
from protoseg.trained import open_file
from tests.conftest import TINY


@pytest.fixture
def base(configure: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """An untrained model of the built-in scenes, whose data are a few of them."""
    cfg = configure("train", *TINY)
    module = build_module(cfg, CAMVID)
    checkpoint: dict = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    path = tmp_path / "base.ckpt"
    save_checkpoint(checkpoint, path)
    return path


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Streets.__init__

    def init(self: Streets, *args: object, **options: object) -> None:
        whole(self, *args, **options)  # type: ignore[arg-type]
        self.samples = self.samples[:4]

    monkeypatch.setattr(Streets, "__init__", init)


@pytest.fixture
def cars(tmp_path: Path) -> tuple[Path, Path]:
    """Two of the scenes, with masks of all their classes."""
    data = Streets(split="train")
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    for index in range(2):
        image, label = data.read(index)
        Image.fromarray(image).save(images / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(masks / f"{index}.png")
    return images, masks


def call(*arguments: object) -> None:
    """The command line, as one would type it; a string may be several words of it."""
    run_tool("teach", [word for part in arguments for word in (part.split() if isinstance(part, str) else [str(part)])])


def classes(path: Path) -> tuple[str, ...]:
    return checkpoint_label_space(read_checkpoint(path)).classes


def test_from_one_checkpoint_to_the_next(
    base: Path,
    cars: tuple[Path, Path],
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, masks = cars
    less, more, again, merged = (tmp_path / f"{name}.ckpt" for name in ("less", "more", "again", "merged"))
    call("remove", base, "--name Car --out", less)
    assert classes(less) == tuple(name for name in CAMVID.classes if name != "Car")
    delta = tmp_path / "car.delta"
    what = "--name Car --color 1,2,3 --id 8"
    call("statistics", less, "--device cpu --out", less)
    assert f"Statistics of 4 images: {less}" in capsys.readouterr().out
    assert open_file(less).statistics().sets.shape == (10,)  # of every second validation image
    call("add", less, "--images", images, "--masks", masks, what, "--out", more, "--delta", delta, "--device cpu")
    shown = capsys.readouterr().out
    assert "Car (student): " in shown
    assert "2 different prototypes" in shown
    assert f"Evaluate it: python evaluate.py ckpt_path={more}" in shown
    assert classes(more) == (*classes(less), "Car")
    assert checkpoint_label_space(read_checkpoint(more)).colors[-1] == (1, 2, 3)
    call("apply", less, delta, "--out", again)
    assert classes(again) == classes(more)
    call("merge", more, "--name Pedestrian --name Bicyclist --into Person --out", merged)
    assert classes(merged)[-2:] == ("Person", "Car")
    call("show", merged)
    assert "Person" in capsys.readouterr().out

    # The data has CamVid's classes in CamVid's order; the last checkpoint has others in another.
    run_evaluation(configure("evaluate", f"ckpt_path={merged}", "num_workers=0", "save=[]", output=tmp_path / "e"))
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    labels = np.stack([Streets(split="val").read(i)[1] for i in range(4)])
    people = np.isin(labels, CAMVID.ids(["Pedestrian", "Bicyclist"], "")).sum()
    by_name = {entry["name"]: entry["true_pixels"] for entry in report["classes"]}
    assert list(by_name) == list(classes(merged))
    assert by_name["Person"] == people
    assert by_name["Car"] == (labels == CAMVID.classes.index("Car")).sum() > 0


def test_a_removed_class_counts_nowhere(base: Path, configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    less = tmp_path / "less.ckpt"
    call("remove", base, "--name Car --name Road --out", less)
    run_evaluation(configure("evaluate", f"ckpt_path={less}", "num_workers=0", "save=[]", output=tmp_path / "e"))
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    labels = np.stack([Streets(split="val").read(i)[1] for i in range(4)])
    counted = ~np.isin(labels, [255, *CAMVID.ids(["Car", "Road"], "")])
    assert sum(entry["true_pixels"] for entry in report["classes"]) == counted.sum()


def test_an_added_class_that_the_data_do_not_label_leaves_the_mean_alone(
    base: Path, cars: tuple[Path, Path], configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    more = tmp_path / "more.ckpt"
    options = ("--images", cars[0], "--masks", cars[1], "--name Plate --color 1,2,3 --id 8 --device cpu --out", more)
    call("statistics", base, "--device cpu --out", base)
    call("add", base, *options)
    run_evaluation(configure("evaluate", f"ckpt_path={more}", "num_workers=0", "save=[]", output=tmp_path / "e"))
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    ious = {entry["name"]: entry["IoU"] for entry in report["classes"]}
    assert report["classes_not_labelled"] == ["Plate"]
    assert ious.pop("Plate") is None
    assert report["mIoU"] == pytest.approx(np.mean([iou for iou in ious.values() if iou is not None]))
    assert (report["checkpoint"], report["network"], report["split"]) == (str(more), "student", "val")


def test_a_class_is_tuned_without_statistics(
    base: Path,
    cars: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("protoseg.teach.tuning.STEPS", 2)
    more = tmp_path / "more.ckpt"
    what = "--name Plate --color 1,2,3 --id 8 --seed 1 --device cpu"
    call("tune", base, "--images", cars[0], "--masks", cars[1], what, "--out", more)
    shown = capsys.readouterr()
    assert "Plate (student): " in shown.out
    assert f"Evaluate it: python evaluate.py ckpt_path={more}" in shown.out
    assert "tuning (student)" in shown.out + shown.err
    assert classes(more) == (*CAMVID.classes, "Plate")
    before, after = (read_checkpoint(path)["state_dict"] for path in (base, more))
    moved = [name for name, tensor in before.items() if not name.startswith("model.head.memory")]
    assert any(not before[name].equal(after[name]) for name in moved if name in after)


def test_a_class_by_another_name_is_asked_about(
    base: Path, cars: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in cars[1].iterdir():  # one cell of the grid
        mask = np.zeros((240, 320), np.uint8)
        mask[:4, :4] = path.stem == "0"
        Image.fromarray(mask).save(path)
    call("statistics", base, "--device cpu --out", base)
    options = ("--name Plate --color 1,2,3 --id 1 --device cpu --out", tmp_path / "new.ckpt")
    call("add", base, "--images", cars[0], "--masks", cars[1], *options)
    shown = capsys.readouterr()
    called = re.findall(r"before, the model called 100% of the cells (\w+)", shown.out)[0]
    assert f"Is it {called}, by another name? Then `protoseg teach refresh` is for it" in shown.err


def test_adapt(base: Path, cars: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.ckpt"
    call("adapt", base, "--images", cars[0], "--device cpu --out", new)
    assert re.search(r"student: .*; entropy of its predictions \d\.\d+ before, \d\.\d+ now", capsys.readouterr().out)
    assert classes(new) == CAMVID.classes


def test_refresh(base: Path, cars: tuple[Path, Path], tmp_path: Path) -> None:
    new = tmp_path / "new.ckpt"
    call("refresh", base, "--images", cars[0], "--masks", cars[1], "--name Road --id 3 --keep 0 --out", new)
    assert classes(new) == CAMVID.classes


@pytest.mark.slow
def test_images_that_were_trained_on_make_no_label_sets(base: Path, tmp_path: Path) -> None:
    content = read_checkpoint(base)
    content["protoseg"]["config"]["data"]["val_split"] = "train"
    save_checkpoint(content, tmp_path / "same.ckpt")
    call("statistics", tmp_path / "same.ckpt", "--device cpu --out", tmp_path / "ready.ckpt")
    known = open_file(tmp_path / "ready.ckpt").statistics()
    assert known is not None
    assert known.sets is None


@pytest.mark.slow
def test_trial(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    less, out = tmp_path / "less.ckpt", tmp_path / "car.json"
    call("remove", base, "--name Car --out", less)
    call("statistics", less, "--device cpu --out", less)
    call("trial", less, "--name Car --shots 1 2 --draws 2 --trained", base, "--out", out, "--device cpu")
    shown = capsys.readouterr().out
    assert "added from 2 images" in shown
    assert "trained with it" in shown
    found = json.loads(out.read_text())
    assert {count: len(scores) for count, scores in found["added"].items()} == {"1": 2, "2": 2}
    assert found["images"][1] == 4


def test_a_trial_reads_classes_that_were_merged_or_removed_before_as_the_checkpoint_does(
    base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "less.ckpt"
    call("remove", base, "--name Car --out", file)
    call("merge", file, "--name Pedestrian --name Bicyclist --into Person --out", file)
    call("remove", file, "--name Pole --out", file)
    data, space = trial.data_with(open_file(file), "Car", None)
    assert space.classes == (*classes(file), "Car")
    found = {"Bicyclist": "Person", "Pedestrian": "Person", "Car": "Car", "Road": "Road", "Pole": None}
    table = data.dataset("train").id_table
    for name, new in found.items():
        assert table[CAMVID.classes.index(name)] == (255 if new is None else space.classes.index(new)), name


@pytest.mark.slow
def test_trial_scores_are_those_of_evaluation(
    base: Path, cars: tuple[Path, Path], configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    less, new = tmp_path / "less.ckpt", tmp_path / "new.ckpt"
    call("remove", base, "--name Car --out", less)
    call("statistics", less, "--device cpu --out", less)
    datamodule = SegmentationDataModule(Streets, 1, (64, 64), num_workers=0)
    showing = trial.showing(datamodule.dataset("train"), CAMVID.classes.index("Car"))
    found = trial.trial(open_file(less), "Car", [len(showing)], 1, open_file(base))
    folders = tmp_path / "all"
    for name in ("images", "masks"):
        (folders / name).mkdir(parents=True)
    for index in showing:
        image, label = Streets(split="train").read(index)
        Image.fromarray(image).save(folders / "images" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(folders / "masks" / f"{index}.png")
    places = ("--images", folders / "images", "--masks", folders / "masks")
    call("add", less, *places, "--name Car --color 1,2,3 --id 8 --device cpu --out", new)
    for path, score in ((new, found.added[len(showing)][0]), (base, found.trained), (less, found.before)):
        run_evaluation(configure("evaluate", f"ckpt_path={path}", "num_workers=0", "save=[]", output=tmp_path / "e"))
        report = json.loads((tmp_path / "e" / "metrics.json").read_text())
        iou = {entry["name"]: entry["IoU"] for entry in report["classes"]}
        others = [value for name, value in iou.items() if name != "Car" and value is not None]
        assert score is not None
        assert score.others == pytest.approx(np.mean(others), abs=1e-9)
        assert path == less or score.iou == pytest.approx(iou["Car"], abs=1e-9)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("show none.ckpt", "no file at none.ckpt"),
        ("remove BASE --name Dog --out x", "got Dog; correct the names"),
        ("trial BASE --name Car", "expected a class that the data has and"),
        ("add BASE --images IMAGES --masks none --name a --color 1,2,3 --out x", "none: no such folder"),
        (
            "add BASE --images IMAGES --masks MASKS --name a --name b --color 1,2,3 --out x",
            "expected one colour for each class",
        ),
        (
            "add BASE --images IMAGES --masks MASKS --name a --name b --color 1,2,3 --color 3,2,1 --out x",
            "expected one id for each class",
        ),
    ],
)
def test_wrong_input_is_one_message(
    command: str, message: str, base: Path, cars: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"BASE": base, "IMAGES": cars[0], "MASKS": cars[1]}
    with pytest.raises(SystemExit) as stop:
        call(*(places.get(word, word) for word in command.split()))
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_a_colour_that_is_none(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("add", base, "--images i --masks m --name a --color red --out x")
    assert "expected three numbers from 0 to 255" in capsys.readouterr().err
