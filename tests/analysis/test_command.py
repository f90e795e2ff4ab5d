"""``protoseg analyse`` on checkpoints of untrained networks and the built-in scenes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from protoseg.checkpoint import save_checkpoint
from protoseg.cli.main import run_tool
from protoseg.data import CAMVID
from protoseg.run.build import build_datamodule, build_module
from tests.conftest import TINY
from tests.teach.conftest import with_scenes

Configure = Callable[..., DictConfig]
WITHOUT_HEAD = tuple(x for x in TINY if not x.startswith("head."))
ADAPT = ("experiment=small_dacs", *WITHOUT_HEAD)


@pytest.fixture
def save(configure: Configure, tmp_path: Path) -> Callable[..., Path]:
    """``save(name, *overrides)``: the checkpoint of a network that has not been trained."""

    def make(name: str, *overrides: str) -> Path:
        cfg = configure("train", *overrides)
        module = build_module(cfg, build_datamodule(cfg).label_space)
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return make


def test_prototypes(save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = save("it's a model.ckpt", *TINY), tmp_path / "out"
    asked = ["--images", "3", "--out", str(out), "--class", "Road", "--class", "Car", "num_workers=0", "--pixels", "60"]
    quoted = str(path).replace("'", "\\'")
    run_tool("analyse", ["prototypes", f"ckpt_path='{quoted}'", *asked])
    shown = capsys.readouterr().out
    assert "Prototypes of each class" in shown
    classes = json.loads((out / "structure.json").read_text())["classes"]
    assert [entry["name"] for entry in classes][:4] == ["Sky", "Building", "Pole", "Road"]
    road = classes[3]
    # Three scenes of 240 x 320 at stride 4.
    assert sum(sum(entry["predicted_cells"]) for entry in classes) == 3 * 60 * 80
    assert road["cells"] == sum(road["true_cells"]) > 1000
    for name in ("within", "between", "occupancy", "embedding"):
        assert Image.open(out / f"{name}.png").width > 300
    assert sorted(path.name for path in (out / "patches").iterdir()) == ["003_Road.jpg", "008_Car.jpg"]


@pytest.mark.slow
def test_uncertainty_of_twins(save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    softmax = ("head=parametric", "loss=parametric", *WITHOUT_HEAD)
    paths = [save("p.ckpt", *TINY), save("s.ckpt", *softmax)]
    save_checkpoint(with_scenes(paths[0]).content, paths[0])
    asked = ["--images", "4", "--maps", "2", "--out", str(tmp_path / "out"), "data=streets", "data.dataset.style=dusk"]
    run_tool("analyse", ["uncertainty", f"ckpt_path={paths[0]}", "--softmax", str(paths[1]), *asked, "num_workers=0"])
    shown = capsys.readouterr().out
    assert "confidence of" in shown
    assert "Label sets, made to cover 90%" in shown
    found = json.loads((tmp_path / "out" / "uncertainty.json").read_text())
    *classes, every = found.pop("label sets")
    assert [row["class"] for row in classes] == list(CAMVID.classes)
    assert 0.5 < every["covered"] <= 1 <= every["size"]
    assert set(found) == {
        "prototype margin", "prototype distance", "softmax confidence", "class-aware confidence",
        "confidence of the softmax twin",
    }  # fmt: skip
    assert len({entry["pixels"] for entry in found.values()}) == 1  # the same images
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 2


@pytest.mark.slow
def test_adaptation(save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted, before = save("a.ckpt", *ADAPT), save("b.ckpt", "seed=1", *ADAPT)
    asked = ["--images", "3", "--panels", "2", "--out", str(tmp_path / "out"), "num_workers=0"]
    run_tool("analyse", ["adaptation", f"ckpt_path={adapted}", "--source-only", str(before), *asked])
    assert "teacher" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert list(found) == ["source only", "student", "teacher"]
    # Before the first step the teacher is the student; the other network started elsewhere.
    assert found["student"]["confusion"] == found["teacher"]["confusion"] != found["source only"]["confusion"]
    assert len(list((tmp_path / "out" / "panels").iterdir())) == 2
    for name in ("confusion", "iou"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 300


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_tool("analyse", arguments)
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_wrong_input_is_told_in_one_line(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected a checkpoint, got none" in refused(capsys, "prototypes")
    assert "no file at missing.ckpt" in refused(capsys, "uncertainty", "ckpt_path=missing.ckpt")
    assert "at least 1 image" in refused(capsys, "prototypes", "ckpt_path=x", "--images", "0")
    assert "Did you mean" in refused(capsys, "prototypes", "ckpt_path=x", "netwrk=teacher")
    path = save("s.ckpt", *ADAPT)
    assert "head=prototype" in refused(capsys, "prototypes", f"ckpt_path={path}")
    path = save("p.ckpt", *TINY)
    wrong = refused(capsys, "prototypes", f"ckpt_path={path}", "--class", "Roda", "--out", str(tmp_path / "out"))
    assert "--class" in wrong
    assert "Roda" in wrong
    assert not (tmp_path / "out").exists()


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two images of 48 x 64 in each split: road, with a car of 14 x 14."""
    mask = np.full((48, 64), 3, np.uint8)
    mask[20:34, 30:44] = 8
    for split in ("train", "val"):
        for i in range(2):
            name = f"0006R0_f{i:05d}.png"
            for folder, array in ((split, np.stack([mask * (20 + i)] * 3, 2)), (f"{split}annot", mask)):
                (tmp_path / "camvid" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "camvid" / folder / name)
    return tmp_path


def test_wrong_labels(save: Callable[..., Path], camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = camvid / "doubts", ["camvid", f"paths.data={camvid}", "--model", str(save("p.ckpt", *TINY))]
    run_tool("data", ["check", *words, "--out", str(out), "--top", "3", "--json"])
    shown = capsys.readouterr()
    assert "no faults" in shown.err
    header, *rows = csv.reader((out / "wrong_labels.csv").read_text().splitlines())
    assert header == ["split", "image", "class", "suggested", "pixels", "score", "left", "top", "width", "height"]
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert 4 <= len(found) <= 8  # of an untrained network
    scores = [float(row["score"]) for row in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] >= 0
    cars = [row for row in found if row["class"] == "Car"]
    for car in cars:
        assert [car[name] for name in header[4:5] + header[6:]] == ["196", "30", "20", "14", "14"]
        assert car["suggested"] != "Car"
        assert Path(car["image"]).parent == camvid / "camvid" / car["split"]
    (table,) = map(json.loads, shown.out.splitlines())
    assert [row["score"] for row in table["rows"]] == pytest.approx(scores[:3])
    assert sorted(path.name for path in (out / "wrong_labels").iterdir()) == ["001.jpg", "002.jpg", "003.jpg"]


def test_wrong_labels_are_judged_by_a_model_of_these_classes(
    save: Callable[..., Path], camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save("p.ckpt", *TINY, "data.relabel={Car: null}")
    for path, message in ((other, "was trained on 10 classes"), (camvid / "none.ckpt", "no file at")):
        with pytest.raises(SystemExit) as stopped:
            run_tool("data", ["check", "camvid", f"paths.data={camvid}", "--model", str(path), "--out", str(camvid)])
        assert stopped.value.code == 1
        assert message in capsys.readouterr().err
    assert not (camvid / "wrong_labels.csv").exists()
