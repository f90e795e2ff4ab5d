"""SETR's decoders and Segmenter's linear one: the published structure, on the maps of a plain ViT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.testing import assert_close

import protoseg
from protoseg.models.decoders import FCNDecoder, SETRMLADecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import LinearHead, PrototypeHead
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.conftest import TINY

SETR = partial(FCNDecoder, plain=True, dropout=0.0, num_convs=1, kernel=1, factor=4)
NAIVE = partial(SETR, width=6)
PUP = partial(SETR, width=6, num_convs=4, kernel=3, factor=2)
LINEAR = partial(SETR, num_convs=0)
MLA = partial(SETRMLADecoder, width=6, level_width=4)
KINDS = {
    "setr_naive": (NAIVE, 6, 4),
    "setr_pup": (PUP, 6, 1),
    "segmenter_linear": (LINEAR, 8, 16),
    "setr_mla": (MLA, 16, 4),
}
HEADS = (LinearHead, partial(PrototypeHead, num_prototypes=2))


def maps(height: int = 4, width: int = 6) -> list[Tensor]:
    return [torch.randn(2, 8, height, width, dtype=torch.double) for _ in range(4)]


@pytest.mark.parametrize("name", KINDS)
def test_shape_and_gradient(name: str) -> None:
    build, channels, stride = KINDS[name]
    decoder = build([8] * 4, [16] * 4).double()
    embedding = decoder(maps())
    assert (decoder.out_channels, decoder.stride) == (channels, stride)
    assert embedding.shape == (2, channels, 64 // stride, 96 // stride)
    embedding.square().sum().backward()
    assert [key for key, p in decoder.named_parameters() if p.grad is None] == []


def block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Convolution without bias, BatchNorm, ReLU, from the numbers of a state."""
    kernel = state[f"{name}.0.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    norm = [state[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *norm))


def channel_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    tokens = F.layer_norm(tokens, x.shape[1:2], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)
    return tokens.transpose(1, 2).reshape(x.shape)


def larger(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, [factor * side for side in x.shape[-2:]], mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("name", "factors"), [("setr_naive", [4]), ("setr_pup", [2] * 4), ("segmenter_linear", [])])
def test_numbers_of_naive_progressive_and_linear(name: str, factors: list[int]) -> None:
    decoder, features = scrambled(KINDS[name][0]([8] * 4, [16] * 4)), maps()
    state = decoder.state_dict()
    x = channel_norm(state, "norm", features[-1])
    for number, factor in enumerate(factors):
        x = larger(block(state, f"convs.{number}", x), factor)
    assert_close(decoder(features), x)
    kernels = [tuple(v.shape) for k, v in state.items() if v.ndim == 4]
    side = 1 if name == "setr_naive" else 3
    assert kernels == [(6, width, side, side) for width in (8, 6, 6, 6)[: len(factors)]]


def test_numbers_of_multi_level_aggregation() -> None:
    decoder, features = scrambled(MLA([8] * 4, [16] * 4)), maps()
    state = decoder.state_dict()
    total: Any = 0
    levels = []
    for place, level in enumerate((3, 2, 1, 0)):  # from the last layer back
        x = channel_norm(state, f"embeddings.{level}.0", features[level])
        total = total + block(state, f"embeddings.{level}.1", x)
        x = total
        for conv in range(3):
            x = block(state, f"levels.{place}.{conv}", x)
        levels.append(larger(x, 4))
    assert_close(decoder(features), torch.cat(levels, dim=1))


def scrambled(decoder: nn.Module) -> nn.Module:
    """In eval mode, with other numbers than the initial ones in its norms."""
    for value in decoder.state_dict().values():
        if value.ndim > 0:
            value.uniform_(0.5, 1.5) if value.ndim == 1 else value.normal_()
    return decoder.double().eval()


def test_number_of_parameters_at_the_papers_size() -> None:
    """ViT-L: 1024 channels, and a softmax classifier of 19 classes, counted by hand."""
    norm, classifier = 2 * 1024, 19 * 256 + 19
    naive = norm + 1024 * 256 + 2 * 256
    pup = norm + 9 * (1024 + 3 * 256) * 256 + 4 * 2 * 256
    level = norm + 1024 * 256 + 2 * 256 + 9 * 256 * 256 + 2 * 256 + 9 * (256 + 128) * 128 + 2 * 2 * 128
    options: dict[Callable[..., nn.Module], int] = {
        SETR: naive + classifier,
        partial(SETR, num_convs=4, kernel=3, factor=2): pup + classifier,
        LINEAR: norm + 19 * 1024 + 19,
        SETRMLADecoder: 4 * level + 19 * 512 + 19,
    }
    with torch.device("meta"):
        for build, wanted in options.items():
            decoder = build([1024] * 4, [16] * 4)
            head = LinearHead(decoder.out_channels, 19)
            assert sum(p.numel() for part in (decoder, head) for p in part.parameters()) == wanted


@pytest.mark.parametrize("head", HEADS, ids=["linear", "prototype"])
@pytest.mark.parametrize("name", KINDS)
def test_a_network_on_an_odd_size(name: str, head: Any) -> None:
    encoder = TimmEncoder("test_vit", pyramid_channels=None)
    assert (encoder.channels, encoder.strides) == ([64] * 4, [16] * 4)
    model = Segmentor(encoder, KINDS[name][0], head, 3)
    grid = [-(-side // model.stride) for side in (50, 75)]
    assert list(model(torch.rand(2, 3, 50, 75)).logits.shape) == [2, 3, *grid]


def test_maps_are_of_the_quarters_of_the_depth() -> None:
    encoder = TimmEncoder("vit_tiny_patch16_224", pyramid_channels=None).eval()
    model: Any = encoder.model
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs = model["model"].forward_intermediates(image, indices=[2, 5, 8, 11], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(encoder(image), theirs, strict=True))


def test_an_encoder_that_does_not_suit_is_one_sentence() -> None:
    for build in (NAIVE, PUP, LINEAR, MLA):
        with pytest.raises(ProtosegError, match=r"one stride, .*got \[4, 8, 16, 32\]; use a plain ViT without its pyr"):
            build([8, 12, 16, 24], [4, 8, 16, 32])
    with pytest.raises(ProtosegError, match=r"a multiple of 16, got \[8, 8\]"):
        PUP([8, 8], [8, 8])


@pytest.mark.parametrize(
    ("name", "head"),
    [("segmenter_linear", "linear"), *(pytest.param(name, "prototype", marks=pytest.mark.slow) for name in KINDS)],
)
def test_trains_and_is_evaluated(
    name: str, head: str, configure: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in TINY if "encoder.name" not in word and "decoder" not in word]
    words += ["encoder=vit_small", "encoder.name=test_vit", "encoder.pyramid_channels=null", f"decoder={name}"]
    words += [
        "trainer.max_steps=3",
        "data.crop_size=[60,60]",
        *([] if name == "segmenter_linear" else ["decoder.width=8"]),
    ]
    words = [word for word in words if head == "prototype" or "head" not in word]
    run_training(configure("train", f"head={head}", *words))
    assert capsys.readouterr().out.count("Crops of [60, 60] are padded to whole patches of 16 pixels") == 1
    file = tmp_path / "run/checkpoints/last.ckpt"
    assert protoseg.load(file).predict(torch.rand(3, 50, 75)).labels.shape == (50, 75)
    if head == "prototype":
        assert run_evaluation(configure("evaluate", f"ckpt_path={file}", "save=[]")) is not None
