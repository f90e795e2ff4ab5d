"""``protoseg.load``: three lines of Python, folders, the hub, and images in whatever form."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

import protoseg
from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.data import CAMVID
from protoseg.data.channels import ImageReader
from protoseg.evaluation.predictor import Predictor
from protoseg.run.build import build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.trained import moved
from protoseg.types import ProtosegError
from tests.conftest import TINY


@pytest.fixture
def run(configure: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """The folder of an untrained run of adaptation, which has a teacher."""
    module = build_module(configure("train", *TINY, "data=streets_day_to_dusk", "method=dacs"), CAMVID)
    module.teacher.module.head.memory.prototypes.neg_()  # type: ignore[union-attr, operator]
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "optimizer_states": [torch.zeros(10)]}
    module.on_save_checkpoint(checkpoint)
    save_checkpoint(checkpoint, tmp_path / "run" / "checkpoints" / "best.ckpt")
    return tmp_path / "run"


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))


def test_importing_the_package_stays_light() -> None:
    code = "import sys, protoseg, protoseg.data; assert not {'torch', 'numpy', 'hydra'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        protoseg.lod  # noqa: B018


@pytest.mark.slow
def test_to_load_and_predict_needs_nothing_of_training(run: Path) -> None:
    code = f"""import sys, numpy, protoseg
protoseg.load({str(run)!r}, device="cpu").predict(numpy.zeros((40, 40, 3), "uint8"))
found = {{"pytorch_lightning", "torchmetrics", "albumentations", "matplotlib", "scipy"}} & sys.modules.keys()
assert not found, found"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_image_in_whatever_form(run: Path, picture: Image.Image, tmp_path: Path) -> None:
    model = protoseg.load(run, device="cpu")
    picture.save(tmp_path / "photo.png")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    want = model.predict(picture)
    assert (want.labels.shape, want.labels.dtype, want.confidence.dtype) == ((50, 70), np.uint8, np.float32)
    assert want.classes == model.classes == CAMVID.classes
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png"), array, tensor, picture.convert("RGBA")):
        got = model.predict(image)
        assert np.array_equal(got.labels, want.labels)
        assert np.array_equal(got.confidence, want.confidence)
    (tmp_path / "more").mkdir()
    picture.rotate(180).save(tmp_path / "more" / "turned.png")
    turned, straight = model.predict(tmp_path)  # a folder
    assert np.array_equal(straight.labels, want.labels)
    assert np.array_equal(turned.image.flip(1, 2), straight.image)
    for band in range(6):  # of two images
        np.save(tmp_path / "more" / f"{band // 3}_{'RGB'[band % 3]}.npy", array[..., band % 3])
    (tmp_path / "more" / "turned.png").unlink()
    model.reader = ImageReader(bands=["_R", "_G", "_B"], channels=3)
    assert all(np.array_equal(found.labels, want.labels) for found in model.predict(tmp_path / "more"))
    model.reader = ImageReader()
    floats = model.predict(tensor.float() / 255)
    np.testing.assert_allclose(floats.confidence, want.confidence, atol=1e-4)
    for wrong in (tensor.float(), tensor.float() / 255 - 1, torch.full_like(tensor, torch.nan, dtype=torch.float)):
        with pytest.raises(ProtosegError, match=r"of uint8 or of float in \[0, 1\], got Tensor of torch.float32"):
            model.predict(wrong)
    deep = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    with pytest.raises(ProtosegError, match=r"expected the path of an image, .* got Image of I;16"):
        model.predict(deep)  # PIL would make all of it white
    grey = Image.fromarray(array[..., 0])
    assert np.array_equal(model.predict(grey).labels, model.predict(grey.convert("RGB")).labels)


def test_what_a_prediction_gives(run: Path, picture: Image.Image, tmp_path: Path) -> None:
    model = protoseg.load(run / "checkpoints" / "best.ckpt", device="cpu")
    prediction = model.predict(picture)
    assert ((prediction.confidence >= 1 / 11) & (prediction.confidence <= 1)).all()
    assert (prediction.unknown.shape, prediction.unknown.dtype) == ((50, 70), np.float32)
    assert ((prediction.unknown >= 0) & (prediction.unknown <= 2)).all()
    assert sum(prediction.mask(name).sum() for name in prediction.classes) == 50 * 70
    assert prediction.overlay(1.0)[0, 0].tolist() == list(CAMVID.colors[prediction.labels[0, 0]])
    first, second = repr(prediction).splitlines()
    assert first == f"Prediction: 70 x 50, mean confidence {prediction.confidence.mean():.2f}"
    frequent = prediction.classes[np.bincount(prediction.labels.ravel()).argmax()]
    assert second.startswith(f"{frequent} {prediction.mask(frequent).mean():.1%}")
    prediction.save(tmp_path / "labels.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), prediction.labels)
    with pytest.raises(ProtosegError, match="mask: expected classes of the label space"):
        prediction.mask("Dog")
    model.predictor = Predictor("slide", crop_size=32)
    assert not np.array_equal(model.predict(picture).confidence, prediction.confidence)


def test_saved_and_loaded_again(
    run: Path, picture: Image.Image, configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    model = protoseg.load(run, device="cpu", network="teacher")
    want = model.predict(picture)
    assert not np.array_equal(want.labels, protoseg.load(run, device="cpu").predict(picture).labels)
    path = model.save_pretrained(tmp_path / "saved")
    assert path == tmp_path / "saved" / "model.ckpt"
    for again in (protoseg.load(tmp_path / "saved"), protoseg.load(path, device="cpu")):
        assert np.array_equal(again.predict(picture).labels, want.labels)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "library_name: protoseg" in card
    assert "Bicyclist" in card
    content = read_checkpoint(path)
    assert "optimizer_states" not in content
    assert not any(name.startswith("teacher.") for name in content["state_dict"])
    assert str(tmp_path) not in str(content["protoseg"])
    picture.save(tmp_path / "photo.png")
    out = tmp_path / "e"
    run_evaluation(
        configure("evaluate", f"ckpt_path={path}", "mode=predict", f"images={tmp_path / 'photo.png'}", output=out)
    )
    assert np.array_equal(np.asarray(Image.open(out / "labels" / "photo.png")), want.labels)


def test_places_do_not_travel_and_data_are_found_where_they_are_looked_for(
    run: Path, few_streets: Path, tmp_path: Path
) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    config = content["protoseg"]["config"]
    own = {"_target_": "protoseg.data.LabelledFolder", "_partial_": True, "classes": "/home/me/mine/classes.yaml"}
    config["data"]["target"] |= {"root": "/home/me/mine", "dataset": own, "train_list": "/home/me/few.txt"}
    elsewhere = {"classes": "/home/me/elsewhere/classes.yaml", "masks": ["/home/me/m_*"]}
    config["data"]["source"]["dataset"] = own | elsewhere
    torch.save(content, checkpoint)
    saved = protoseg.load(run, device="cpu").save_pretrained(tmp_path / "saved")
    said = read_checkpoint(saved)["protoseg"]["config"]
    assert "/home/me" not in str(said)
    target = said["data"]["target"]
    assert (target["root"], target["dataset"]["classes"]) == ("data/mine", "data/mine/classes.yaml")
    table = {"root": ".", "dataset": {"classes": "potsdam"}}  # a table's name is no file
    assert moved(table, "elsewhere") == table | {"root": "elsewhere"}


def test_the_range_of_deep_images_goes_along(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["protoseg"]["config"]["data"]["target"]["dataset"]["image_range"] = [0, 4095]
    torch.save(content, checkpoint)
    saved = protoseg.load(run, device="cpu").save_pretrained(tmp_path / "saved")
    deep = np.array([[[4095, 0, 2048]]], np.uint16).repeat(64, 0).repeat(64, 1)
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    seen = protoseg.load(saved.parent, device="cpu").predict(tmp_path / "deep.png").image
    assert seen[:, 0, 0].tolist() == [255, 0, 128]


def test_a_card_of_ones_own_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    protoseg.load(run, device="cpu").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


class Hub:
    """A hub in a folder: what ``huggingface_hub`` is called for here, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
        for file in Path(folder_path).iterdir():
            (self.folder / repo_id / file.name).write_bytes(file.read_bytes())
        return f"https://hub/{repo_id}"

    def download(self, repo_id: str, filename: str, revision: str | None = None) -> str:
        path = self.folder / repo_id / filename
        if not path.is_file():
            raise FileNotFoundError(f"404 {repo_id}")
        return str(path)


def test_push_and_pull(run: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    model = protoseg.load(run, device="cpu")
    assert model.push_to_hub("someone/streets") == "https://hub/someone/streets"
    pulled = protoseg.load("hf://someone/streets", device="cpu")
    assert np.array_equal(pulled.predict(picture).labels, model.predict(picture).labels)
    with pytest.raises(ProtosegError, match=r"'hf://someone/none' cannot be had .*404 someone/none"):
        protoseg.load("hf://someone/none")


def test_a_hub_out_of_reach(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(ProtosegError, match=r"\(ConnectionError: no route\): check the name and the connection"):
        protoseg.load("hf://someone/streets")
    with pytest.raises(ProtosegError, match=r"push_to_hub: a/b was refused or is out of reach .*save_pretrained"):
        protoseg.load(run, device="cpu").push_to_hub("a/b")


def test_wrong_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="no file at"):
        protoseg.load(tmp_path / "none.ckpt")
    with pytest.raises(ProtosegError, match=r"load: expected model.ckpt, checkpoints/best.ckpt, .* got none of them"):
        protoseg.load(tmp_path)
    with pytest.raises(ProtosegError, match="network: expected one of student, teacher"):
        protoseg.load(run, network="other")
    model = protoseg.load(run, device="cpu")
    with pytest.raises(ProtosegError, match=r"^image nowhere.jpg: expected a file, got none there; correct the path"):
        model.predict("nowhere.jpg")
    for image in (np.zeros((4, 5)), np.zeros((4, 5, 3), np.int64), torch.zeros(4, 5, 3), None):
        with pytest.raises(ProtosegError, match="predict: expected the path of an image"):
            model.predict(image)
