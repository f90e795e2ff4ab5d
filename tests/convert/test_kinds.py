"""Kinds without golden files: against their formulas, or the library that they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

import protoseg
from protoseg.functional.resize import upsample_logits
from protoseg.models.encoders import MiTEncoder
from protoseg.run.convert import convert
from protoseg.types import ProtosegError

from .conftest import weight

State = dict[str, Tensor]
PLACES = {"patch_embed": 0, "block": 1, "norm": 2}
WIDTHS = (32, 64, 160, 256)


def mit() -> tuple[MiTEncoder, State]:
    encoder = MiTEncoder("b0").eval()
    state = {name: weight(name, tuple(value.shape)) for name, value in encoder.model.state_dict().items()}
    encoder.model.load_state_dict(state)
    return encoder, state


def in_mmseg_names(state: State) -> State:
    """MiT as mmsegmentation's own converter names it."""
    parts = {"attn.proj.": "attn.attn.out_proj.", "mlp.fc1.": "ffn.layers.0.", "mlp.fc2.": "ffn.layers.4."}
    parts |= {"mlp.dwconv.dwconv.": "ffn.layers.1."}
    found: State = {}
    for name, value in state.items():
        first, rest = name.split(".", 1)
        kind, stage = first[:-1], int(first[-1]) - 1
        if ".attn.kv." in name:
            continue
        if ".attn.q." in name:
            value, rest = torch.cat([value, state[name.replace(".q.", ".kv.")]]), rest.replace("q.", "attn.in_proj_")
        for old, new in parts.items():
            rest = rest.replace(old, new)
        if rest.endswith(("ffn.layers.0.weight", "ffn.layers.4.weight")):
            value = value[..., None, None]
        rest = rest.replace("proj.", "projection.") if kind == "patch_embed" else rest
        found[f"layers.{stage}.{PLACES[kind]}.{rest}"] = value
    return found


def made(shapes: dict[str, tuple[int, ...]]) -> State:
    return {name: weight(name, shape) for name, shape in shapes.items()}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.bn.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def conv_bn_relu(x: Tensor, s: State, name: str) -> Tensor:
    mean, var, scale, bias = (s[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(F.conv2d(x, s[f"{name}.conv.weight"]), mean, var, scale, bias).relu()


def upsampled(maps: list[Tensor]) -> list[Tensor]:
    return [F.interpolate(x, maps[0].shape[-2:], mode="bilinear") for x in maps]


def nvlabs(maps: list[Tensor], width: int) -> tuple[State, Tensor]:
    """SegFormer's decoder and logits as its paper and released code have them."""
    shapes: dict[str, tuple[int, ...]] = {"decode_head.conv_seg.weight": (19, 128, 1, 1)}  # of no use there
    for i, channels in enumerate(WIDTHS, 1):
        shapes |= {
            f"decode_head.linear_c{i}.proj.weight": (width, channels),
            f"decode_head.linear_c{i}.proj.bias": (width,),
        }
    shapes |= {"decode_head.linear_fuse.conv.weight": (width, 4 * width, 1, 1)} | norm("decode_head.linear_fuse", width)
    s = made(shapes | {"decode_head.linear_pred.weight": (19, width, 1, 1), "decode_head.linear_pred.bias": (19,)})
    names = [f"decode_head.linear_c{i}.proj" for i in range(1, 5)]
    embedded = [
        F.conv2d(x, s[f"{n}.weight"][..., None, None], s[f"{n}.bias"]) for n, x in zip(names, maps, strict=True)
    ]
    fused = conv_bn_relu(torch.cat(upsampled(embedded)[::-1], 1), s, "decode_head.linear_fuse")
    return s, F.conv2d(fused, s["decode_head.linear_pred.weight"], s["decode_head.linear_pred.bias"])


def mmseg(maps: list[Tensor], width: int) -> tuple[State, Tensor]:
    """The same as mmsegmentation has it: BatchNorm and ReLU after each embedding, maps joined finest first."""
    names = [f"decode_head.convs.{i}" for i in range(4)]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, channels in zip(names, WIDTHS, strict=True):
        shapes |= {f"{name}.conv.weight": (width, channels, 1, 1)} | norm(name, width)
    shapes |= {"decode_head.fusion_conv.conv.weight": (width, 4 * width, 1, 1)} | norm("decode_head.fusion_conv", width)
    s = made(shapes | {"decode_head.conv_seg.weight": (150, width, 1, 1), "decode_head.conv_seg.bias": (150,)})
    embedded = [conv_bn_relu(x, s, name) for name, x in zip(names, maps, strict=True)]
    fused = conv_bn_relu(torch.cat(upsampled(embedded), 1), s, "decode_head.fusion_conv")
    return s, F.conv2d(fused, s["decode_head.conv_seg.weight"], s["decode_head.conv_seg.bias"])


@pytest.mark.parametrize(
    ("code", "width", "new_names"), [pytest.param(nvlabs, 256, False, marks=pytest.mark.slow), (mmseg, 128, True)]
)
@torch.no_grad()
def test_segformer(code: object, width: int, new_names: bool, tmp_path: Path) -> None:
    encoder, backbone = mit()
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    decoder, expected = code(encoder((image - mean.view(3, 1, 1)) / std.view(3, 1, 1)), width)  # type: ignore[operator]
    names = in_mmseg_names(backbone) if new_names else backbone
    torch.save({"state_dict": decoder | {f"backbone.{n}": t for n, t in names.items()}}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.ckpt")
    logits = protoseg.load(tmp_path / "a.ckpt", device="cpu").network(image).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (lambda: smp.Segformer("mit_b0", encoder_weights=None, classes=19), []),
        (
            lambda: smp.UPerNet("resnet18", encoder_weights=None, classes=19),
            ["encoder=resnet50", "encoder.name=resnet18"],
        ),
    ],
)
@torch.no_grad()
def test_smp(model: object, settings: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = model().eval()  # type: ignore[operator]
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.ckpt", overrides=settings)
    ours = protoseg.load(tmp_path / "a.ckpt", device="cpu").network
    image = torch.rand(1, 3, 64, 96)
    output, expected = ours(image), theirs(ours.normalize(image))
    logits = upsample_logits(output.logits, (64, 96), 4, output.align_corners)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_encoders(tmp_path: Path) -> None:
    """ImageNet weights by new names, and a checkpoint of ours, go into ``encoder.weights=``."""
    encoder, state = mit()
    torch.save({"state_dict": in_mmseg_names(state)}, tmp_path / "mmseg.pth")
    convert(tmp_path / "mmseg.pth", tmp_path / "mit.pth")
    decoder, _ = nvlabs([torch.zeros(1, c, 2, 2) for c in WIDTHS], 256)
    torch.save(decoder | {f"backbone.{n}": t for n, t in state.items()}, tmp_path / "whole.pth")
    convert(tmp_path / "whole.pth", tmp_path / "whole.ckpt")
    for weights in ("mit.pth", "whole.ckpt"):
        loaded = MiTEncoder("b0", weights=tmp_path / weights).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in encoder.state_dict().items())
    with pytest.raises(ProtosegError, match=r"set \+\+encoder.mean=\[0.485,0.456,0.406\]"):
        MiTEncoder("b0", weights=tmp_path / "whole.ckpt", mean=(0.5, 0.5, 0.5))


@pytest.mark.slow
def test_timm_weights_need_a_name(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ProtosegError, match="need encoder=NAME"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth")
    with pytest.raises(ProtosegError, match=r"weights file \S*a\.pth does not fit the encoder"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth", overrides=["encoder=resnet50"])
    assert not (tmp_path / "b.pth").exists()
    assert (
        convert(tmp_path / "a.pth", tmp_path / "b.pth", overrides=["encoder=resnet50", "encoder.name=resnet18"]) is None
    )
