from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protoseg.models.daformer import DAFormerDecoder
from protoseg.models.decoders import (
    AuxiliaryHead,
    DeepLabV3PlusDecoder,
    FCNDecoder,
    FPNDecoder,
    HRNetDecoder,
    SegFormerDecoder,
    UNetDecoder,
    UPerNetDecoder,
)
from protoseg.models.encoders import TimmEncoder
from protoseg.types import ProtosegError

CHANNELS, STRIDES = [8, 12, 16, 24], [4, 8, 16, 32]
DECODERS: list[tuple[str, Callable[..., nn.Module], int, int]] = [
    ("fpn", partial(FPNDecoder, pyramid_channels=16, segmentation_channels=32), 32, 4),
    ("upernet", partial(UPerNetDecoder, width=16), 16, 4),
    ("segformer", partial(SegFormerDecoder, width=16), 16, 4),
    ("deeplabv3plus", partial(DeepLabV3PlusDecoder, width=16), 16, 4),
    ("fcn", partial(FCNDecoder, width=16), 16, 32),
    ("fcn_concat", partial(FCNDecoder, width=16, in_index=1, concat_input=True), 16, 8),
    ("fcn_no_conv", partial(FCNDecoder, num_convs=0), 24, 32),
    ("hrnet", HRNetDecoder, 60, 4),
    ("daformer", partial(DAFormerDecoder, width=16), 16, 4),
    ("unet_2", partial(UNetDecoder, widths=[16, 12, 8, 6]), 6, 2),
    ("unet_1", partial(UNetDecoder, widths=[16, 12, 8, 6, 5]), 5, 1),
    ("unetplusplus_2", partial(UNetDecoder, widths=[16, 12, 8, 6], nested=True), 6, 2),
    ("unetplusplus_1", partial(UNetDecoder, widths=[16, 12, 8, 6, 5], nested=True), 5, 1),
]
NAMES = [case[0] for case in DECODERS]


@pytest.fixture(scope="module")
def lite0() -> TimmEncoder:
    return TimmEncoder("tf_efficientnet_lite0")


def maps(height: int, width: int, batch: int = 2, dtype: torch.dtype = torch.float) -> list[Tensor]:
    sizes = [(batch, c, height // s, width // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    return [torch.randn(size, dtype=dtype) for size in sizes]


@pytest.mark.parametrize(("name", "build", "out_channels", "stride"), DECODERS, ids=NAMES)
def test_shape_dtype_gradient_and_untouched_input(
    name: str, build: Callable[..., nn.Module], out_channels: int, stride: int
) -> None:
    decoder = build(CHANNELS, STRIDES).double()
    features = [m.requires_grad_() for m in maps(96, 160, dtype=torch.double)]
    before = list(features)
    embedding = decoder(features)
    assert (decoder.out_channels, decoder.stride) == (out_channels, stride)
    assert embedding.shape == (2, out_channels, 96 // stride, 160 // stride)
    assert embedding.dtype == torch.double
    assert all(a is b for a, b in zip(before, features, strict=True))
    embedding.square().sum().backward()
    missing = [key for key, p in decoder.named_parameters() if p.grad is None]
    assert not missing, "a parameter without gradient stops DDP"


@pytest.mark.parametrize("build", [case[1] for case in DECODERS], ids=NAMES)
def test_every_decoder_on_lite0(build: Callable[..., nn.Module], lite0: TimmEncoder) -> None:
    decoder = build(lite0.channels, lite0.strides)
    embedding = decoder(lite0(torch.rand(2, 3, 64, 96)))
    assert embedding.shape[1] == decoder.out_channels
    assert embedding.shape[-2:] == (64 // decoder.stride, 96 // decoder.stride)


def test_hrnet_decoder_joins_720_channels() -> None:
    assert HRNetDecoder([48, 96, 192, 384], STRIDES).out_channels == 720


@pytest.mark.parametrize(
    "build", [case[1] for case in DECODERS if case[3] == 4], ids=[c[0] for c in DECODERS if c[3] == 4]
)
def test_no_resizing_shifts_a_level(build: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bilinear resizing keeps cells on their pixels only with align_corners=False, in the library's decoders too."""
    calls = []
    original = nn.functional.interpolate

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        bound = inspect.signature(original).bind(*args, **kwargs).arguments
        calls.append((bound.get("mode"), bound.get("align_corners")))
        return original(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "interpolate", spy)
    build(CHANNELS, STRIDES)(maps(96, 160))
    assert calls
    assert {align for mode, align in calls if mode != "nearest"} <= {False}


def test_fpn_places_a_coarse_cell_on_its_own_pixels() -> None:
    """The centre of mass of a lone coarse cell's effect is that cell's centre, far from the borders, on any size."""
    torch.manual_seed(0)
    decoder = FPNDecoder(CHANNELS, STRIDES, 16, 32, dropout=0.0).double().eval()
    branch = decoder.decoder.seg_blocks[0].block
    upsampling = [layer for layer in branch if isinstance(layer, nn.Upsample)]
    coarse = torch.zeros(1, 1, 7, 9, dtype=torch.double)
    coarse[..., 2, 5] = 1
    fine = coarse
    for layer in upsampling:
        fine = layer(fine)
    assert fine.shape[-2:] == (7 * 8, 9 * 8)
    mass = fine[0, 0] / fine.sum()
    rows, columns = torch.arange(56) + 0.5, torch.arange(72) + 0.5
    assert (mass.sum(1) * rows).sum() / 8 == pytest.approx(2.5)
    assert (mass.sum(0) * columns).sum() / 8 == pytest.approx(5.5)
    assert not any(getattr(layer, "upsample", False) for layer in branch)


def test_strides_of_a_dilated_encoder() -> None:
    strides = [4, 8, 16, 16]
    features = maps(96, 160)
    features[3] = torch.randn(2, 24, 6, 10)
    for build in (DeepLabV3PlusDecoder, SegFormerDecoder, UPerNetDecoder, HRNetDecoder):
        assert build(CHANNELS, strides)(features).shape[-2:] == (24, 40)
    with pytest.raises(ProtosegError, match=r"FPN.*\[4, 8, 16, 32\], got \[4, 8, 16, 16\].*decoder=segformer"):
        FPNDecoder(CHANNELS, strides)


def test_bad_arguments() -> None:
    with pytest.raises(ProtosegError, match="segmentation_channels: expected a multiple of 32, got 100"):
        FPNDecoder(CHANNELS, STRIDES, segmentation_channels=100)
    with pytest.raises(ProtosegError, match="in_index: expected one of the encoder's 4 maps, got 4"):
        FCNDecoder(CHANNELS, STRIDES, in_index=4)


@pytest.mark.parametrize("nested", [False, True])
def test_unet_refuses_other_strides_and_numbers_of_widths(nested: bool) -> None:
    with pytest.raises(ProtosegError, match=r"^U-Net decoder: expected maps at strides \[4, 8, 16, 32\], got"):
        UNetDecoder(CHANNELS, [4, 8, 16, 16], nested=nested)
    for widths in ([8] * 3, [8] * 6):
        with pytest.raises(ProtosegError, match=r"^decoder\.widths: expected 4 numbers .* got \[8, 8, 8"):
            UNetDecoder(CHANNELS, STRIDES, widths, nested)


@pytest.mark.parametrize("nested", [False, True])
def test_unet_joins_the_finest_map(nested: bool) -> None:
    """A change of one cell of the map at stride 4 shows at its own place only, at stride 2."""
    torch.manual_seed(0)
    decoder = UNetDecoder(CHANNELS, STRIDES, [8, 8, 8, 8], nested).eval()
    features = maps(96, 160, batch=1)
    before = decoder(features)
    features[0][..., 12, 20] += 10
    rows, columns = (decoder(features) - before).abs().sum((0, 1)).nonzero().T
    assert rows.float().mean() == pytest.approx(24.5, abs=1)
    assert columns.float().mean() == pytest.approx(40.5, abs=1)


def test_auxiliary_head() -> None:
    logits = AuxiliaryHead(CHANNELS, STRIDES, num_classes=5, width=8)(maps(96, 160))
    assert logits.shape == (2, 5, 6, 10)


@pytest.mark.parametrize("kind", [DeepLabV3PlusDecoder, UPerNetDecoder])
def test_one_image_is_no_batch_for_what_pools_to_one_cell(kind: type[nn.Module]) -> None:
    decoder = kind([8, 8, 8, 8], [4, 8, 16, 32], width=8)
    one = [torch.rand(1, 8, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    with pytest.raises(ProtosegError, match=r"expected two images or more .*, got 1; set data\.batch_size=2"):
        decoder(one)
    assert decoder.eval()(one).shape == (1, 8, 16, 16)
