from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from protoseg.models.encoders import IMAGENET_MEAN, Encoder, MiTEncoder, SimpleFeaturePyramid, TimmEncoder
from protoseg.types import ProtosegError

SMALL_SWIN = {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 3, 6)}
VIT = [256, 256, 256, 256]
TIMM_CASES: list[tuple[str, dict[str, Any], list[int]]] = [
    ("tf_efficientnet_lite0", {}, [24, 40, 112, 320]),
    ("mobilenetv2_100", {}, [24, 32, 96, 320]),
    ("resnet18", {}, [64, 128, 256, 512]),
    ("convnext_atto", {}, [40, 80, 160, 320]),
    ("hrnet_w18_small", {}, [16, 32, 64, 128]),
    ("swin_tiny_patch4_window7_224", SMALL_SWIN, [24, 48, 96, 192]),
    ("swinv2_tiny_window8_256", SMALL_SWIN, [24, 48, 96, 192]),
    ("test_vit", {}, VIT),
    ("vit_small_patch14_dinov2", {"depth": 3}, VIT),
    ("vit_tiny_patch16_dinov3_qkvb", {"depth": 3}, VIT),
    ("vit_small_patch8_224", {"depth": 3}, VIT),
]


def check_maps(encoder: Encoder, channels: list[int], strides: tuple[int, ...] = (4, 8, 16, 32)) -> None:
    height, width = 96, 160
    with torch.no_grad():
        maps = encoder.eval()(torch.randn(1, 3, height, width))
    assert encoder.channels == channels
    assert tuple(encoder.strides) == strides
    assert [tuple(m.shape) for m in maps] == [
        (1, c, height // s, width // s) for c, s in zip(channels, strides, strict=True)
    ]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(("name", "options", "channels"), TIMM_CASES, ids=[case[0] for case in TIMM_CASES])
def test_timm_families_give_four_maps_of_a_size_not_their_own(
    name: str, options: dict[str, Any], channels: list[int]
) -> None:
    check_maps(TimmEncoder(name, **options), channels)


def test_hrnet_w48_has_720_channels() -> None:
    with torch.device("meta"):
        encoder = TimmEncoder("hrnet_w48")
    assert encoder.channels == [48, 96, 192, 384]


def test_mit() -> None:
    encoder = MiTEncoder("b0")
    check_maps(encoder, [32, 64, 160, 256])
    assert encoder.mean == IMAGENET_MEAN


def test_output_stride_is_followed() -> None:
    check_maps(TimmEncoder("resnet18", output_stride=16), [64, 128, 256, 512], (4, 8, 16, 16))


def test_mean_and_std_are_the_models_own() -> None:
    assert TimmEncoder("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    assert TimmEncoder("tf_efficientnet_lite0").std == (0.5, 0.5, 0.5)
    assert TimmEncoder("mobilenetv2_100").mean == IMAGENET_MEAN


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_maps_depend_on_what_they_look_at(name: str) -> None:
    """A bright corner moves the map's value there most: rows and columns are not mixed up (NHWC, tokens)."""
    encoder = TimmEncoder(name, **(SMALL_SWIN if "swin" in name else {})).eval()
    image = torch.zeros(1, 3, 64, 96)
    bright = image.clone()
    bright[..., :8, 80:] = 3
    with torch.no_grad():
        change = (encoder(bright)[0] - encoder(image)[0]).abs().mean(1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < 4
    assert column >= 18


def test_plain_vit_with_patch_14_sees_the_padded_image_cell_on_pixels() -> None:
    """timm's own maps of the image padded to whole patches, resampled to stride 16 as torch does, and cut."""
    torch.manual_seed(0)
    encoder = TimmEncoder("vit_small_patch14_dinov2", depth=3, pyramid_channels=None).eval()
    model: Any = encoder.model
    image = torch.randn(2, 3, 64, 96)
    padded = torch.zeros(2, 3, 70, 98)
    padded[..., :64, :96] = image
    with torch.no_grad():
        theirs = model["model"].forward_intermediates(padded, indices=[0, 1, 2], intermediates_only=True)
        ours = encoder(image)
    assert (encoder.channels, encoder.strides) == ([384] * 3, [16] * 3)
    for own, raw in zip(ours, theirs, strict=True):
        assert raw.shape[-2:] == (5, 7)
        scaled = F.interpolate(raw, scale_factor=14 / 16, mode="bilinear", recompute_scale_factor=False)
        assert_close(own, scaled[..., :4, :6])


def test_pyramid_stages_are_aligned_with_the_vits_map() -> None:
    """A ViT map that is zero but for one cell moves only the cells of every level that cover it (and 3 x 3 around)."""
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(8, stride=16, out_channels=4).double()
    still = torch.zeros(1, 8, 6, 8, dtype=torch.double)
    moved = still.clone()
    moved[:, :, 2, 4] = torch.randn(8, dtype=torch.double)
    for stride, a, b in zip(pyramid.strides, pyramid(still), pyramid(moved), strict=True):
        assert a.shape[-2:] == (6 * 16 // stride, 8 * 16 // stride)
        rows, columns = (a - b).abs().sum((0, 1)).nonzero(as_tuple=True)
        for cells, origin in ((rows, 2 * 16), (columns, 4 * 16)):
            assert cells.min() * stride >= origin - 2 * stride + 1
            assert (cells.max() + 1) * stride <= origin + 16 + 2 * stride - 1


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_vit"])
def test_double_stays_double(name: str) -> None:
    encoder = TimmEncoder(name).double()
    assert all(m.dtype == torch.double for m in encoder(torch.rand(2, 3, 32, 64, dtype=torch.double)))


def test_encoder_keeps_channels_last() -> None:
    encoder = TimmEncoder("tf_efficientnet_lite0").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    maps = encoder(torch.rand(2, 3, 64, 64))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    assert_close(maps[0], maps[0].contiguous())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tf_efficientnet_lit0", {}, "got 'tf_efficientnet_lit0'; nearest: .*tf_efficientnet_lite0"),
        ("hrnet48", {}, "nearest: .*hrnet_w48"),
        ("resnet18", {"no_such_option": 1}, "resnet18.*no_such_option"),
        ("beit_base_patch16_224", {"depth": 3}, "one size only.*img_size"),
        ("resnet18", {"output_stride": 5}, "resnet18"),
    ],
)
def test_bad_encoder_is_one_clear_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        TimmEncoder(name, **options)


def test_unknown_mit_variant() -> None:
    with pytest.raises(ProtosegError, match="b0, b1, b2, b3, b4, b5, got 'b7'"):
        MiTEncoder("b7")
