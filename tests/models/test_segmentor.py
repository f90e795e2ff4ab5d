from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from protoseg.functional.resize import pad_to_multiple, upsample_logits
from protoseg.models.decoders import AuxiliaryHead, FCNDecoder, FPNDecoder
from protoseg.models.encoders import MIT_VARIANTS, Encoder, TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.types import ProtosegError, SegOutput

CONF = Path(__file__).parents[2] / "conf"
FPN = partial(FPNDecoder, pyramid_channels=32, segmentation_channels=32)


class TinyHead(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, features: Tensor) -> SegOutput:
        return SegOutput(logits=self.classifier(features), embeddings=features)


class PoolEncoder(Encoder):
    """Average colours at strides 4 to 32: makes padding, normalisation and geometry visible."""

    channels, strides = [3] * 4, [4, 8, 16, 32]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen = image
        return [nn.functional.avg_pool2d(image, s) for s in self.strides]


class FinestMap(nn.Module):
    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.out_channels, self.stride = channels[0], strides[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        return features[0]


def lite0(decoder: object = FPN, **options: object) -> Segmentor:
    torch.manual_seed(0)
    return Segmentor(TimmEncoder("tf_efficientnet_lite0"), decoder, TinyHead, num_classes=5, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[FPN, partial(FCNDecoder, width=8)], ids=["fpn", "fcn"])
def model(request: pytest.FixtureRequest) -> Segmentor:
    return lite0(request.param).eval()


@pytest.mark.parametrize("size", [(90, 123), (64, 64), (33, 31), (1, 1)])
def test_any_image_size(size: tuple[int, int], model: Segmentor) -> None:
    with torch.no_grad():
        output = model(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    grid = tuple(-(-length // model.stride) for length in size)
    assert output.logits.shape == (2, 5, *grid)
    assert output.embeddings.shape[-2:] == grid
    assert output.auxiliary is None
    for feature, stride in zip(output.features, (4, 8, 16, 32), strict=True):
        assert feature.shape[-2:] == tuple(-(-length // stride) for length in size)
    assert upsample_logits(output.logits, size, model.stride).shape == (2, 5, *size)


def test_vit_encoder_on_an_odd_size() -> None:
    model = Segmentor(TimmEncoder("vit_small_patch14_dinov2", depth=3, pyramid_channels=16), FPN, TinyHead, 3)
    assert model(torch.rand(1, 3, 50, 75)).logits.shape == (1, 3, 13, 19)


def test_normalisation_and_zero_padding() -> None:
    encoder = PoolEncoder()
    model = Segmentor(encoder, FinestMap, TinyHead, 2).double()
    image = torch.randint(0, 256, (1, 3, 30, 50), dtype=torch.uint8)
    output = model(image)
    expected = torch.stack([(image[0, c] / 255.0 - encoder.mean[c]) / encoder.std[c] for c in range(3)])
    assert encoder.seen.shape == (1, 3, 32, 64)
    assert_close(encoder.seen[0, :, :30, :50].float(), expected)
    assert encoder.seen[..., 30:, :].abs().sum() + encoder.seen[..., 50:].abs().sum() == 0
    assert_close(model(image.double() / 255).logits, output.logits)


def test_double_stays_double_and_half_precision_autocast_runs() -> None:
    model = lite0(auxiliary=partial(AuxiliaryHead, width=8))
    image = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(image).logits.isfinite().all()
    output = model.double()(image)
    assert output.logits.dtype == output.auxiliary.dtype == torch.double


def test_single_precision_agrees_with_double() -> None:
    model = lite0().eval()
    image = torch.rand(1, 3, 45, 70)
    with torch.no_grad():
        single = model(image).logits
        assert_close(single.double(), model.double()(image).logits, rtol=1e-3, atol=1e-4)


def test_result_does_not_depend_on_memory_format() -> None:
    model = lite0().eval()
    image = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    with torch.no_grad():
        before = model(image).logits
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        output = model(image.contiguous(memory_format=torch.channels_last))
    assert output.logits.is_contiguous(memory_format=torch.channels_last)
    assert_close(output.logits, before, rtol=1e-3, atol=1e-4)


def test_padding_keeps_channels_last() -> None:
    image = torch.rand(2, 3, 30, 50).contiguous(memory_format=torch.channels_last)
    assert pad_to_multiple(image, 32).is_contiguous(memory_format=torch.channels_last)


def test_auxiliary_only_while_training_and_on_the_decoders_grid() -> None:
    model = lite0(auxiliary=partial(AuxiliaryHead, in_index=2, width=8))
    image = torch.rand(2, 3, 50, 70)
    output = model(image)
    assert output.auxiliary.shape == output.logits.shape
    (output.logits.sum() + output.auxiliary.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(image).auxiliary is None


def test_statistics_are_not_in_the_state_dict() -> None:
    assert {"mean", "std"}.isdisjoint(lite0().state_dict())


def test_learned_parameters() -> None:
    model = Segmentor(PoolEncoder(), FinestMap, TinyHead, num_classes=7)
    assert (model.num_classes, model.stride) == (7, 4)
    assert sum(p.numel() for p in model.parameters()) == 3 * 7 + 7


@pytest.mark.parametrize("image", [torch.rand(3, 8, 8), torch.rand(1, 4, 8, 8), torch.ones(1, 3, 8, 8).long()])
def test_wrong_images(image: Tensor) -> None:
    with pytest.raises(ProtosegError, match=r"expected images b 3 h w, .* as uint8 or float"):
        Segmentor(PoolEncoder(), FinestMap, TinyHead, 2)(image)


def test_every_encoder_and_decoder_config_instantiates() -> None:
    decoders = sorted((CONF / "decoder").glob("*.yaml"))
    plain = ["segmenter_linear", "setr_mla", "setr_naive", "setr_pup"]  # of ViTs, whose maps are of one stride
    of_maps = [
        "daformer",
        "deeplabv3plus",
        "fcn",
        "fpn",
        "hrnet",
        "none",
        "segformer",
        "unet",
        "unetplusplus",
        "upernet",
    ]
    names = sorted([*of_maps, *plain])
    assert [path.stem for path in decoders] == names
    for path in decoders:
        if path.stem == "unetplusplus":
            continue  # it has unet.yaml as a default, which Hydra alone puts in: tests/models/test_decoders.py
        strides = [16] * 4 if path.stem in plain else [4, 8, 16, 32]
        decoder = instantiate(OmegaConf.load(path))([8, 8, 8, 8], strides)
        assert decoder.out_channels > 0
    encoders = sorted((CONF / "encoder").glob("*.yaml"))
    assert len(encoders) == 20
    for path in encoders:
        config = OmegaConf.load(path)
        assert config.pretrained is True
        if path.stem.startswith("mit_"):  # cannot be built without memory: test_encoders builds one
            assert path.stem == f"mit_{config.variant}"
            assert config.variant in MIT_VARIANTS
            continue
        with torch.device("meta"):
            encoder = instantiate(config, pretrained=False)
        assert encoder.strides == [4, 8, 16, 32], path.stem
