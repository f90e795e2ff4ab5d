"""ONNX files compute what the model computes, at the sizes they are for."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import Conv2dSame
from torch import Tensor, nn

from protoseg.data.label_spaces import CAMVID
from protoseg.evaluation.predictor import Predictor
from protoseg.export import compare_onnx, export_onnx
from protoseg.export.onnx import Difference, _Network, multiple_of
from protoseg.models.decoders import FPNDecoder, SETRMLADecoder
from protoseg.models.encoders import Encoder, TimmEncoder
from protoseg.models.hrda import HRDASegmentor
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeHead
from protoseg.run import convert
from protoseg.types import ProtosegError

onnx = pytest.importorskip("onnx", reason="pip install 'protoseg[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'protoseg[onnx]'")


class Pyramid(Encoder):
    """Four maps of a few channels by convolutions with TensorFlow's padding, as EfficientNet-Lite's."""

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        if in_chans != 3:
            self.set_input((0.5,) * in_chans, (0.2,) * in_chans, in_chans)
        self.channels, self.strides = [4, 4, 4, 4], [4, 8, 16, 32]
        self.stem = Conv2dSame(in_chans, 4, 4, stride=2)
        self.stages = nn.ModuleList(Conv2dSame(4, 4, 3, stride=2) for _ in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def tiny(in_chans: int = 3) -> Segmentor:
    torch.manual_seed(0)
    decoder = partial(FPNDecoder, pyramid_channels=8, segmentation_channels=32)
    return Segmentor(Pyramid(in_chans), decoder, partial(PrototypeHead, num_prototypes=3), 11).eval()


@pytest.mark.slow
def test_other_channels_are_given_in_0_to_1(tmp_path: Path) -> None:
    ranges = [(100.0 * k, 500.0 + 1000 * k) for k in range(5)]
    model = tiny(5)
    path = export_onnx(model, CAMVID, tmp_path / "model.onnx", (64, 64), ranges)
    difference = compare_onnx(model, path, [(64, 64)], scaled=True)
    assert difference.logits < 1e-4
    session, image = onnxruntime.InferenceSession(str(path)), torch.rand(1, 5, 64, 64)
    assert json.loads(session.get_modelmeta().custom_metadata_map["ranges"]) == [list(pair) for pair in ranges]
    _, logits = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(image).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = export_onnx(model, CAMVID, tmp_path / "model.onnx")
    difference = compare_onnx(model, path, [(64, 96), (240, 320), (241, 319), (33, 70)])
    assert difference.logits < 1e-4
    assert difference.labels < 1e-3
    photo = torch.randint(256, (1, 3, 241, 319), dtype=torch.uint8)  # the comparison is with what predicts
    (labels,) = Predictor().predict(model, photo, torch.tensor([[241, 319]]))
    (there, _) = onnxruntime.InferenceSession(path).run(None, {"image": photo.numpy()})
    assert (labels.numpy() == there[0]).all()

    # The recipe of the manual.
    manual = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    (code,) = re.findall(r"```python\n(import json\n.*?)```", manual, re.DOTALL)
    Image.fromarray(photo[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    drawn = np.asarray(Image.open("labels.png"))
    assert (drawn == np.array(CAMVID.colors, np.uint8)[labels.numpy()]).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # and the same modules
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["classes"]) == list(CAMVID.classes)
    assert json.loads(metadata["colors"])[0] == list(CAMVID.colors[0])
    assert json.loads(metadata["parents"]) == []

    with torch.no_grad():  # the comparison sees another model
        model.head.memory.prototypes.copy_(model.head.memory.prototypes.flip(0))
    assert compare_onnx(model, path, [(64, 96)]).labels > 0.1


def test_a_file_that_computes_nan_is_no_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        """The model's own outputs, one number of its logits NaN."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.network = _Network(tiny(), (50, 70))

        @torch.no_grad()
        def run(self, _: None, inputs: dict[str, Any]) -> list[Any]:
            outputs = [output.numpy() for output in self.network(torch.from_numpy(inputs["image"]))]
            if poisoned:
                outputs[1].flat[0] = np.nan
            return outputs

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    poisoned = False
    assert compare_onnx(tiny(), "x.onnx", [(50, 70)]).logits == 0
    poisoned = True
    assert compare_onnx(tiny(), "x.onnx", [(50, 70)]).logits == np.inf


@pytest.mark.parametrize(
    ("taught", "logits", "labels", "fine"),
    [
        *(([], 5e-4, 0.0, True), ([], 5e-3, 0.0, False), ([], 5e-4, 0.01, False)),
        *(([3], 5e-2, 0.0, True), ([3], 0.2, 0.0, False), ([3], 5e-3, 0.01, False)),
    ],
)
def test_what_the_logits_may_differ_by(
    taught: list[int], logits: float, labels: float, fine: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of classes that were taught are log-likelihoods, in which torch differs from itself by more."""
    (tmp_path / "m.onnx").touch()
    network = SimpleNamespace(discriminant=SimpleNamespace(taught=taught))
    for name, made in {
        "load": SimpleNamespace(network=network, reader=None, label_space=CAMVID),
        "export_onnx": tmp_path / "m.onnx",
        "multiple_of": 1,
        "compare_onnx": Difference(logits, labels),
    }.items():
        monkeypatch.setattr(convert, name, lambda *_, made=made, **__: made)
    with (
        nullcontext()
        if fine
        else pytest.raises(ProtosegError, match=f"expected at most 0.{1 if taught else '001'} and 0.1%: do not use it")
    ):
        convert.export("x.ckpt", tmp_path / "m.onnx", None, "student", ())


@pytest.mark.slow
def test_one_size_of_any_kind(tmp_path: Path) -> None:
    path = export_onnx(tiny(), CAMVID, tmp_path / "model.onnx", (50, 70))
    assert compare_onnx(tiny(), path, [(50, 70)]).logits < 1e-4


def test_free_size_of_hrda_is_refused(tmp_path: Path) -> None:
    decoder = partial(FPNDecoder, pyramid_channels=8, segmentation_channels=32)
    model = HRDASegmentor(Pyramid(3), decoder, PrototypeHead, 11, detail_size=32, attention=decoder)
    with pytest.raises(ProtosegError, match="expected a fixed size for HRDA"):
        export_onnx(model, CAMVID, tmp_path / "model.onnx")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("protoseg.types.find_spec", lambda name: None)
    with pytest.raises(ProtosegError, match=r"onnx, onnxscript.*pip install 'protoseg\[onnx\]'"):
        export_onnx(tiny(), CAMVID, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mit_b0", "swin_tiny_patch4_window7_224"])
def test_real_encoders(name: str, tmp_path: Path) -> None:
    from protoseg.models.encoders import MiTEncoder

    encoder = MiTEncoder("b0", pretrained=False) if name == "mit_b0" else TimmEncoder(name, pretrained=False)
    decoder = partial(FPNDecoder, pyramid_channels=16, segmentation_channels=32)
    model = Segmentor(encoder, decoder, PrototypeHead, 11).eval()
    path = export_onnx(model, CAMVID, tmp_path / "model.onnx")
    free = multiple_of(path) == 1
    assert free == ("swin" not in name)
    assert compare_onnx(model, path, [(64, 96), (160, 128), *([(241, 319)] if free else [])]).logits < 1e-3


@pytest.mark.slow
def test_patches_of_14_at_any_size(tmp_path: Path) -> None:
    """Padded, resampled and cut inside the file, with Rein and a decoder of plain ViTs."""
    torch.manual_seed(0)
    encoder = TimmEncoder("vit_small_patch14_reg4_dinov2", depth=3, pyramid_channels=None, rein_tokens=5)
    torch.nn.init.normal_(encoder.rein.delta.weight, std=0.02)
    model = Segmentor(encoder, partial(SETRMLADecoder, width=8, level_width=4), PrototypeHead, 11).eval()
    path = export_onnx(model, CAMVID, tmp_path / "model.onnx")
    assert multiple_of(path) == 1
    assert compare_onnx(model, path, [(64, 96), (160, 128), (241, 319)]).logits < 1e-4


@pytest.mark.slow
def test_hrda_at_one_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = partial(FPNDecoder, pyramid_channels=8, segmentation_channels=32)
    model = HRDASegmentor(Pyramid(3), decoder, PrototypeHead, 11, detail_size=64, attention=decoder).eval()
    size = (128, 192)  # two coarsest cells and more: normalised over one cell, the FPN's norms would amplify rounding
    path = export_onnx(model, CAMVID, tmp_path / "model.onnx", size)
    assert compare_onnx(model, path, [size]).logits < 1e-4
