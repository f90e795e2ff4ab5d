"""Images of any channels: read from every form with their values, trained on, predicted, exported; what is refused."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import nn

import protoseg
from protoseg.cli.main import run_tool
from protoseg.data import LabelledFolder, SegmentationDataModule
from protoseg.data.channels import ImageReader
from protoseg.data.files import read_image
from protoseg.data.own import ImageFolder
from protoseg.data.statistics import channel_statistics, image_size
from protoseg.data.transforms import TrainTransform, scaled_part
from protoseg.evaluation.pictures import overlay
from protoseg.evaluation.predict import predict
from protoseg.evaluation.predictor import Predictor
from protoseg.functional.mixing import strong_transform
from protoseg.models.encoders import MiTEncoder, TimmEncoder
from protoseg.models.weights import adapt_first_layer
from protoseg.run.build import with_channels
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.types import LabelSpace, ProtosegError, SegOutput

needs_rasterio = pytest.mark.skipif(find_spec("rasterio") is None, reason="rasterio is not installed: protoseg[geo]")
PLACE = (10.0, 0.0, 600_000.0, 0.0, -10.0, 5_000_000.0)


def numbers(channels: int, seed: int = 0, side: int = 64) -> NDArray[np.uint16]:
    """``h w c``, of channel ``k`` values from 1000 k to 1000 k + 499."""
    noise = np.random.default_rng(seed).integers(0, 500, (side, side, channels))
    return (noise + 1000 * np.arange(channels)).astype(np.uint16)


def write(path: Path, pixels: NDArray[Any], pages: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif pages:
        first, *others = [Image.fromarray(page) for page in pixels.transpose(2, 0, 1)]
        first.save(path, save_all=True, append_images=others)
    else:
        import rasterio

        height, width, count = pixels.shape
        profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
        with rasterio.open(path, "w", **profile, crs="EPSG:32632", transform=rasterio.Affine(*PLACE)) as file:
            file.write(pixels.transpose(2, 0, 1))
    return path


def folder(root: Path, channels: int, ending: str, dtype: Any = np.uint16) -> Path:
    """Six images of two classes, of which the last channel tells which is where."""
    for i in range(6):
        mask = np.kron(np.random.default_rng(i).integers(0, 2, (2, 2)), np.ones((32, 32))).astype(np.uint8)
        pixels = numbers(channels, i)
        pixels[..., -1] += 3000 * mask.astype(np.uint16)
        write(root / "images" / f"{i}{ending}", pixels.astype(dtype))
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.yaml").write_text("classes: [low, high]\n")
    return root


FORMS: dict[str, Callable[[Path, NDArray[np.uint16]], Path]] = {
    "npy": lambda root, x: write(root / "a.npy", x),
    "npy, channels first": lambda root, x: write(root / "a.npy", x.transpose(2, 0, 1).copy()),
    "npy, floats": lambda root, x: write(root / "a.npy", x.astype(np.float32)),
    "pages": lambda root, x: write(root / "a.tif", x, pages=True),
    "GeoTIFF": lambda root, x: write(root / "a.tif", x),
    "GeoTIFF, floats": lambda root, x: write(root / "a.tif", x.astype(np.float32)),
}


@pytest.mark.parametrize("form", [pytest.param(f, marks=[needs_rasterio] * ("Geo" in f)) for f in FORMS])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_every_form_is_read_with_its_values(tmp_path: Path, form: str, channels: int) -> None:
    pixels = numbers(channels, side=20)[:, :17]
    path = FORMS[form](tmp_path, pixels)
    seen = ImageReader(channels, image_range=[-1000, 15000]).read(path)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen * 16000 - 1000, pixels, atol=2e-3)
    assert image_size(path) == (17, 20)


def test_bands_in_files_of_their_own(tmp_path: Path) -> None:
    names, root, pixels = ["_B02", "_B08"], folder(tmp_path, 1, ".npy"), numbers(2)
    for file in (root / "images").iterdir():
        file.unlink()
    for i in range(6):
        for k, name in enumerate(names):
            write(root / "images" / f"{i}{name}.npy", pixels[..., k])
    dataset = LabelledFolder(root, root / "classes.yaml", bands=names, image_range=[[0, 500], [1000, 1500]])
    np.testing.assert_allclose(dataset.read(0)[0] * 500 + [0, 1000], pixels, atol=1e-3)
    assert len({image for image, _ in dataset.samples}) == 5
    assert len(ImageFolder(root / "images", dataset.label_space, reader=dataset.reader).samples) == 6
    (missing := dataset.reader.files(dataset.samples[0][0])[1]).unlink()
    with pytest.raises(ProtosegError, match=rf"image {missing}: .*expected a file, got none"):
        dataset.read(0)


def test_png_of_four_channels_keeps_the_fourth(tmp_path: Path) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(ImageReader(4).read(tmp_path / "a.png") * 255, pixels, atol=1e-4)


def test_statistics(tmp_path: Path) -> None:
    root = folder(tmp_path, 2, ".npy")
    dataset = LabelledFolder(root, root / "classes.yaml", channels=2)
    ranges, mean, std = channel_statistics(dataset)
    every = np.concatenate([np.load(image).reshape(-1, 2) for image, _ in dataset.samples])
    np.testing.assert_allclose(np.array(ranges).T, np.percentile(every, (0.1, 99.9), 0), atol=1)
    scaled = np.stack([dataset.read(i)[0] for i in range(len(dataset))])
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), mean, atol=1e-5)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), std, atol=1e-5)


def refused(reader: ImageReader, path: Path, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        reader.read(path)


def test_what_is_refused(tmp_path: Path) -> None:
    pixels = numbers(4)
    four = write(tmp_path / "four.npy", pixels)
    refused(ImageReader(13), four, r"four\.npy: expected 13 channel\(s\).*got 4: give")
    refused(ImageReader(4), four, "got uint16 and no image_range: set data.dataset.image_range")
    refused(ImageReader(), four, "image .*four.npy")
    holes = write(tmp_path / "holes.npy", np.where(pixels == pixels[0, 0], np.nan, pixels.astype(np.float32)))
    bad = np.isnan(np.load(holes)).any(2).sum()
    refused(
        ImageReader(4, image_range=[0, 1]), holes, rf"expected finite numbers, got NaN or infinity in {bad} of 4096"
    )
    for options, message in (
        ({"channels": 0}, "channels: expected a number from 1 to 512, got 0"),
        ({"bands": ["../a", "b"]}, "bands: expected an end of names"),
        ({"bands": ["a", "b"], "channels": 3}, "bands: expected an end of names for each of 3"),
        (
            {"channels": 4, "image_range": [[0, 1]] * 3},
            r"expected \[low, high\] for all or for each of 4 channels, got 3",
        ),
        ({"channels": 4, "shown": [0, 1, 4]}, r"shown: expected three of more than 3 channels, got \[0, 1, 4\] of 4"),
    ):
        with pytest.raises(ProtosegError, match=message):
            ImageReader(**options)


def test_check_names_the_image_of_other_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path, 4, ".npy")
    np.save(root / "images" / "3.npy", numbers(3))
    with pytest.raises(SystemExit):
        run_tool("data", ["check", "folder", f"data.root={root}", "data.dataset.channels=4"])
    assert re.search(r"fault: image .*3\.npy: expected 4 channel\(s\).*got 3", capsys.readouterr().out)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_the_first_layer_of_rgb_weights_is_adapted(channels: int) -> None:
    rgb, other = (
        TimmEncoder("resnet18"),
        TimmEncoder("resnet18", mean=[0] * channels, std=[1] * channels, in_chans=channels),
    )
    state = rgb.model.state_dict()
    before = state["conv1.weight"].clone()
    adapt_first_layer(state, other.model.state_dict())
    other.model.load_state_dict(state)
    repeated = torch.stack([before[:, k % 3] for k in range(channels)], 1) * 3 / channels
    torch.testing.assert_close(state["conv1.weight"], before.sum(1, keepdim=True) if channels == 1 else repeated)
    mit = MiTEncoder(mean=[0] * channels, std=[1] * channels, in_chans=channels).eval()
    assert [m.shape[-1] for m in mit(torch.zeros(1, channels, 64, 64))] == [16, 8, 4, 2]


def test_augmentation_of_many_channels() -> None:
    image = np.random.default_rng(0).random((40, 30, 13), np.float32)
    part = scaled_part(image, (60, 50), (5, 10, 45, 40))
    for k in range(13):
        np.testing.assert_array_equal(
            part[..., k], scaled_part(image[..., k : k + 1], (60, 50), (5, 10, 45, 40))[..., 0]
        )
    label = np.zeros((40, 30), np.uint8)
    transform, plain = (TrainTransform((64, 64), photometric=on) for on in (True, False))
    changed = 0
    for seed in range(6):
        seen, kept = (t(image, label, seed)[0] for t in (transform, plain))
        assert seen.shape == kept.shape == (64, 64, 13)
        assert seen.dtype == np.float32
        assert 0 <= seen.min() <= seen.max() <= 1
        changed += not np.array_equal(seen, kept)
    assert 0 < changed < 6


@pytest.mark.slow
@needs_rasterio
def test_from_training_to_georeferenced_predictions(
    tmp_path: Path, configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import rasterio

    root = folder(tmp_path / "data", 4, ".tif")
    run = tmp_path / "run"
    few = ["trainer.max_steps=4", "schedule.warmup_steps=0", "trainer.val_check_interval=4", "data.num_workers=0"]
    few += ["data.batch_size=2", "data.crop_size=[64,64]", "encoder.pretrained=false", "trainer.accelerator=cpu"]
    options = ["data=folder", f"data.root={root}", "data.dataset.channels=4", "data.dataset.shown=[3,1,0]"]
    run_training(configure("train", *options, *few, output=run))
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)["protoseg"]["config"]
    assert len(content["encoder"]["mean"]) == content["encoder"]["in_chans"] == 4
    assert len(content["data"]["dataset"]["image_range"]) == 4
    small_windows(monkeypatch)
    out, known = tmp_path / "out", ["num_workers=0", "device=cpu"]
    run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", *known, output=tmp_path / "judged"))
    run_evaluation(
        configure(
            "evaluate", f"ckpt_path={checkpoint}", "mode=predict", f"images={root / 'images'}", *known, output=out
        )
    )
    model = protoseg.load(checkpoint, device="cpu")
    for i in range(6):
        with rasterio.open(out / "labels" / f"{i}.tif") as file:
            assert (str(file.crs), file.transform[:6]) == ("EPSG:32632", PLACE)
            np.testing.assert_array_equal(file.read(1), model.predict(root / "images" / f"{i}.tif").labels)
    rgb = write(tmp_path / "rgb" / "a.npy", numbers(3))
    with pytest.raises(ProtosegError, match="1 image\\(s\\) could not be predicted"):
        run_evaluation(
            configure("evaluate", f"ckpt_path={checkpoint}", "mode=predict", f"images={rgb}", *known, output=out)
        )
    with pytest.raises(ProtosegError, match=r"expected images b 4 h w, of the channels it was trained on.*got \(1, 3"):
        model.network(torch.zeros(1, 3, 64, 64))


def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AT_ONCE", 32 * 32), ("WINDOW", 32), ("OVERLAP", 8)):
        monkeypatch.setattr(f"protoseg.evaluation.predictor.{name}", value)


@needs_rasterio
@pytest.mark.parametrize("kind", ["RGB", "grey", "palette"])
def test_a_geotiff_for_an_rgb_model_keeps_its_place(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import rasterio

    small_windows(monkeypatch)
    pixels = (numbers(3 if kind == "RGB" else 1) // 16 % 5).astype(np.uint8)
    path = write(tmp_path / "in" / "a.tif", pixels)
    if kind == "palette":
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, {k: (50 * k, 0, 255 - 50 * k, 255) for k in range(5)})
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 1).eval()
    space = LabelSpace("three", ("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 99, 99)))
    predict(Labels(model), tmp_path / "in", Predictor(), space, tmp_path / "out", "cpu")
    with pytest.raises(ProtosegError, match="1 image"):
        predict(Labels(model), tmp_path / "in", Predictor(), space, tmp_path / "no", "cpu", save=["probabilities"])
    told = capsys.readouterr()
    assert "of a georeferenced TIFF, which is read by windows, got probabilities" in " ".join(told.err.split())
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as file:
        assert (str(file.crs), file.transform[:6]) == ("EPSG:32632", PLACE)
        rgb = torch.tensor(read_image(path)).permute(2, 0, 1).float()
        np.testing.assert_array_equal(file.read(1), model(rgb[None])[0].argmax(0))
        assert kind == "grey" or len(np.unique(file.read(1))) > 1
    assert "1 images predicted" in told.out


@needs_rasterio
@pytest.mark.filterwarnings("error")
def test_a_tiff_that_is_nowhere_on_earth(tmp_path: Path) -> None:
    import rasterio

    pixels, path = numbers(5)[:8, :8], tmp_path / "a.tif"
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        file = rasterio.open(path, "w", driver="GTiff", height=8, width=8, count=5, dtype="uint16")
    with file:
        file.write(pixels.transpose(2, 0, 1))
    assert ImageReader(channels=5, image_range=[0, 65535]).read(path).shape == (8, 8, 5)
    with pytest.raises(ProtosegError, match=r"a\.tif: .*a TIFF of N channels: train with data\.dataset\.channels=N"):
        read_image(path)


@needs_rasterio
def test_windows_narrower_than_a_step_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_windows(monkeypatch)
    monkeypatch.setattr("protoseg.evaluation.predict.SIDE", 13)
    model, space = nn.Conv2d(3, 3, 1).eval(), LabelSpace("three", ("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 99, 99)))
    for width in (57, 58):  # windows of one and two columns, every fifth of which is shown
        write(tmp_path / "in" / f"{width}.tif", numbers(3)[:40, :width].astype(np.uint8))
    predict(Labels(model), tmp_path / "in", Predictor(), space, tmp_path / "out", "cpu")
    assert len([*(tmp_path / "out" / "overlays").iterdir()]) == 2


class Labels(nn.Module):
    """A model that gives what another makes of the pixels."""

    stride, num_classes = 1, 3

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> SegOutput:
        logits = self.model(image.float())
        return SegOutput(logits, logits)


def test_what_pictures_show_goes_with_the_classes() -> None:
    image = torch.arange(5).div(5).view(5, 1, 1).expand(5, 2, 2)
    space = LabelSpace("one", ("a",), ((0, 0, 0),))
    label, chosen = torch.zeros(2, 2, dtype=torch.int64), replace(space, shown=(4, 2, 0))
    for own, wanted in ((space, [0, 51, 102]), (chosen, [204, 102, 0]), (space, [0, 51, 102])):
        assert overlay(image, label, own, alpha=0)[0, 0].tolist() == wanted
    assert chosen == space


def test_a_pair_is_measured_on_its_source(tmp_path: Path, configure: Callable[..., DictConfig]) -> None:
    source = folder(tmp_path / "source", 4, ".npy")
    for i in range(2):
        write(tmp_path / "target" / f"{i}.npy", 2 * numbers(4, i))
    pair = ["method=dacs", "data=folder_to_folder", f"data.source.root={source}", f"data.target.root={tmp_path}/target"]
    cfg = with_channels(
        configure("train", *pair, *(f"data.{part}.dataset.channels=4" for part in ("source", "target")))
    )
    measured = channel_statistics(LabelledFolder(source, source / "classes.yaml", channels=4))
    for part in (cfg.data.source, cfg.data.target):
        assert part.dataset.image_range == measured[0]
    assert [cfg.encoder.in_chans, cfg.encoder.mean, cfg.encoder.std] == [4, *measured[1:]]
    seen = strong_transform(torch.rand(2, 4, 32, 32), jitter_probability=1.0, kornia=True)
    assert (seen.dtype, seen.shape) == (torch.float32, (2, 4, 32, 32))
    assert 0 <= seen.min() <= seen.max() <= 1
    with pytest.raises(ProtosegError, match=r"channels: expected one number for all parts, got"):
        with_channels(configure("train", *pair, "data.source.dataset.channels=4"))


def test_training_warns_of_few_levels_of_16_bits(tmp_path: Path) -> None:
    root = folder(tmp_path, 1, ".npy")
    for path in (root / "images").iterdir():
        Image.fromarray(np.load(path)[..., 0]).save(path.with_suffix(".png"))
        path.unlink()
    part = SegmentationDataModule(
        partial(LabelledFolder, classes=root / "classes.yaml"), root=root, batch_size=2, crop_size=[64, 64]
    )
    with pytest.warns(UserWarning, match=r"hold values up to \d+ .* set data.dataset.image_range=\[0,4095\]"):
        part.setup("fit")


def test_a_tiff_that_needs_rasterio_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path := tmp_path / "a.tif")
    with pytest.raises(ProtosegError, match=r"^image \S*a\.tif: expected rasterio for such a TIFF, got none"):
        ImageReader(5).read(path)
