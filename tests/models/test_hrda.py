"""HRDA: the fusion by hand, training crops, sliding windows, prototype heads, wrong input."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from protoseg.functional.resize import window_starts
from protoseg.models import HRDASegmentor, Segmentor
from protoseg.models.decoders import AuxiliaryHead, FCNDecoder, SegFormerDecoder
from protoseg.models.encoders import Encoder, MiTEncoder
from protoseg.models.hrda import fuse
from protoseg.nn import Head, PrototypeHead
from protoseg.types import ProtosegError, SegOutput
from tests.functional.dense import dense

CONF = Path(__file__).parents[2] / "conf"
SMALL_ATTENTION = partial(SegFormerDecoder, width=8)


class PoolEncoder(Encoder):
    """Mean colours at strides 4 to 32: linear, without overlap, so that every logit can be told from the image."""

    channels, strides = [3] * 4, [4, 8, 16, 32]
    mean, std = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image, s) for s in self.strides]


class FinestMap(nn.Module):
    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.out_channels, self.stride = channels[0], strides[0]

    def forward(self, features: list[Tensor]) -> Tensor:
        return features[0]


class ColourHead(Head):
    """The normalised colours are the class logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(num_classes, in_channels)

    def forward(self, features: Tensor) -> SegOutput:
        return SegOutput(logits=features, embeddings=features)


def toy(detail_size: Any = 32, head: Any = ColourHead, **options: Any) -> HRDASegmentor:
    torch.manual_seed(0)
    model = HRDASegmentor(
        PoolEncoder(), FinestMap, head, 3, detail_size=detail_size, attention=SMALL_ATTENTION, **options
    )
    return model.double()


def set_attention(model: HRDASegmentor, value: int) -> None:
    """Exactly 0 or 1 everywhere."""
    nn.init.zeros_(model.attention.classifier.weight)
    nn.init.constant_(model.attention.classifier.bias, 1e4 if value else -1e4)  # type: ignore[arg-type]


def colours(image: Tensor, stride: int) -> Tensor:
    return F.avg_pool2d(image - 0.5, stride)


def context_by_hand(image: Tensor) -> Tensor:
    return F.interpolate(colours(image, 8), scale_factor=2, mode="bilinear", align_corners=False)


def test_fuse_by_hand() -> None:
    context = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    detail = torch.tensor([[[[10.0, 20.0]]]])
    attention = torch.tensor([[[[0.5, 0.5, 0.5], [1.0, 0.25, 0.75]]]])
    expected = [[1.0, 2.0, 3.0], [4.0, 0.75 * 5 + 0.25 * 10, 0.25 * 6 + 0.75 * 20]]
    assert fuse(context, detail, attention, (1, 1))[0, 0].tolist() == expected
    assert context[0, 0, 1, 1] == 5, "the context is not overwritten"


@pytest.mark.parametrize(("length", "window", "expected"), [(8, 4, [0, 2, 4]), (9, 4, [0, 2, 4, 5]), (3, 3, [0])])
def test_windows_cover_the_image(length: int, window: int, expected: list[int]) -> None:
    assert window_starts(length, window, max(1, window // 2)) == expected


@pytest.mark.parametrize("training", [True, False])
def test_maps_that_something_is_done_to_are_the_contexts_and_the_details(training: bool) -> None:
    model, image = toy().train(training), torch.rand(2, 3, 64, 96, dtype=torch.double)
    outputs = []
    for drop in (None, lambda x: x, lambda x: 0 * x):
        torch.manual_seed(0)
        outputs.append(model.perturbed(image, drop))
    plain, same, nothing = outputs
    assert_close(same.logits, plain.logits, rtol=0, atol=0)
    assert not nothing.logits.any()
    for output in outputs:
        assert (output.detail is not None) == training
        assert not training or output.detail.box == plain.detail.box
    assert not training or not nothing.detail.logits.any()


@pytest.mark.parametrize("training", [True, False])
def test_no_attention_is_exactly_the_context(training: bool) -> None:
    model = toy().train(training)
    set_attention(model, 0)
    image = torch.rand(2, 3, 64, 96, dtype=torch.double)
    output = model(image)
    assert output.logits.shape == (2, 3, 16, 24)
    assert_close(output.logits, context_by_hand(image), rtol=0, atol=1e-12)
    whole = Segmentor(PoolEncoder(), FinestMap, ColourHead, 3).double()
    alone = whole(F.avg_pool2d(image, 2)).logits
    expected = F.interpolate(alone, scale_factor=2, mode="bilinear")
    assert_close(output.logits, expected, rtol=0, atol=1e-12)


def test_full_attention_is_exactly_the_detail_inside_the_box_and_the_context_outside() -> None:
    model = toy((32, 64))
    set_attention(model, 1)
    image = torch.rand(2, 3, 96, 128, dtype=torch.double)
    seen = set()
    for _ in range(20):
        output = model(image)
        top, left, height, width = output.detail.box
        seen.add((top, left))
        assert (height, width) == (32, 64)
        expected = context_by_hand(image)
        crop = colours(image[..., top : top + 32, left : left + 64], 4)
        assert_close(output.detail.logits, crop, rtol=0, atol=1e-12)
        expected[..., top // 4 : top // 4 + 8, left // 4 : left // 4 + 16] = crop
        assert_close(output.logits, expected, rtol=0, atol=1e-12)
    assert len(seen) > 10
    assert all(corner % 8 == 0 for place in seen for corner in place), "whole cells of the context's grid"


def test_box_comes_from_the_global_generator_and_reaches_every_border() -> None:
    model = toy()

    def boxes() -> list[tuple[int, ...]]:
        torch.manual_seed(5)
        return [model._random_box((48, 40)) for _ in range(100)]

    assert boxes() == boxes()
    assert {box[0] for box in boxes()} == {0, 8, 16}
    assert {box[1] for box in boxes()} == {0, 8}
    assert model._random_box((32, 32)) == (0, 0, 32, 32)


def test_evaluation_covers_the_image_with_windows() -> None:
    """The toy network looks at single cells, so that averaged windows must give the details of the whole image."""
    model = toy().eval()
    set_attention(model, 1)
    image = torch.rand(3, 3, 72, 104, dtype=torch.double)
    output = model(image)
    assert output.detail is None
    assert_close(output.logits, colours(image, 4), rtol=0, atol=1e-12)


def test_windows_are_averaged() -> None:
    """A head that says where in its window a cell lies: the mean over the windows that hold the cell."""

    class Column(ColourHead):
        def forward(self, features: Tensor) -> SegOutput:
            column = torch.arange(features.shape[-1], dtype=features.dtype).expand_as(features)
            return SegOutput(logits=column, embeddings=features)

    model = toy(head=Column).eval()
    set_attention(model, 1)
    logits = model(torch.rand(1, 3, 32, 64, dtype=torch.double)).logits
    # windows of 8 cells at 0, 4, 8 of 16
    expected = [0, 1, 2, 3, 2, 3, 4, 5, 2, 3, 4, 5, 4, 5, 6, 7]
    assert logits[0, 0, 0].tolist() == expected


def test_evaluation_does_not_depend_on_the_batch() -> None:
    model = toy().eval()
    image = torch.rand(3, 3, 96, 96, dtype=torch.double)  # 25 windows an image: several chunks, cut anywhere
    single = torch.cat([model(image[i : i + 1]).logits for i in range(3)])
    assert_close(model(image).logits, single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(90, 123), (32, 32), (33, 31), (20, 70), (1, 1)])
def test_any_image_size_in_evaluation(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = HRDASegmentor(
        MiTEncoder("b0"), SMALL_ATTENTION, partial(PrototypeHead, num_prototypes=2), 5, detail_size=32
    ).eval()
    with torch.no_grad():
        output = model(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    grid = tuple(-(-length // 4) for length in size)
    assert output.logits.shape == (2, 5, *grid)
    assert output.logits.isfinite().all()
    assert output.embeddings.shape[-2:] == grid
    assert dense(output.similarities).shape == (2 * grid[0] * grid[1], 5, 2)
    for feature, stride in zip(output.features, model.feature_strides, strict=True):
        assert feature.shape[-2:] == tuple(-(-length // stride) for length in size)


def test_odd_sizes_while_training() -> None:
    model = toy()
    set_attention(model, 1)
    image = torch.rand(2, 3, 45, 71, dtype=torch.double)
    output = model(image)
    top, left, _, _ = output.detail.box
    assert output.logits.shape == (2, 3, 12, 18)
    inside = output.logits[..., top // 4 : top // 4 + 8, left // 4 : left // 4 + 8]
    assert torch.equal(inside, output.detail.logits)


def test_gradients_reach_attention_and_both_branches() -> None:
    torch.manual_seed(0)
    decoder = partial(FCNDecoder, in_index=0, width=8)
    model = HRDASegmentor(
        MiTEncoder("b0"), decoder, partial(PrototypeHead, num_prototypes=2), 5, partial(AuxiliaryHead, width=8), 32,
        SMALL_ATTENTION,
    )  # fmt: skip
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    output = model(image)
    assert output.auxiliary.shape == output.logits.shape
    (output.logits.square().sum() + output.auxiliary.sum()).backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter without gradient stops DDP"

    def reaches_outside(value: int) -> bool:
        """Whether logits in the middle of the box have a gradient from pixels outside it: only by the context."""
        set_attention(model, value)
        image.grad = None
        output = model.train()(image)
        top, left, _, _ = output.detail.box
        output.logits[..., top // 4 + 4, left // 4 + 4].sum().backward()
        outside = image.grad.abs().sum(1)  # type: ignore[attr-defined]
        outside[:, top : top + 32, left : left + 32] = 0
        return bool(outside.sum() > 0)

    assert reaches_outside(0)
    assert not reaches_outside(1)


def test_attention_is_all_that_is_added() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    torch.manual_seed(0)
    encoder = MiTEncoder("b0")
    single = Segmentor(encoder, FCNDecoder, partial(PrototypeHead, embedding_dim=16), 7)
    counts = {}
    for per_class in (True, False):
        double = HRDASegmentor(
            encoder, FCNDecoder, partial(PrototypeHead, embedding_dim=16), 7, attention_per_class=per_class
        )
        counts[per_class] = count(double) - count(single)
        assert counts[per_class] == count(double.attention)
        assert (double.num_classes, double.stride) == (single.num_classes, single.stride)
    assert counts[True] - counts[False] == 6 * (256 + 1)


def test_one_attention_for_all_classes() -> None:
    model = toy(attention_per_class=False).eval()
    image = torch.rand(1, 3, 64, 64, dtype=torch.double)
    context, detail = context_by_hand(image), colours(image, 4)
    share = (model(image).logits - context) / (detail - context)
    assert_close(share[:, :1].expand_as(share), share, rtol=1e-6, atol=1e-9)
    assert (share > 0).all()
    assert (share < 1).all()


def test_prototype_head_gives_unit_embeddings_and_their_similarities() -> None:
    model = toy(head=partial(PrototypeHead, num_prototypes=4, embedding_dim=6))
    output = model(torch.rand(2, 3, 64, 96, dtype=torch.double))
    assert_close(output.embeddings.norm(dim=1), torch.ones(2, 16, 24, dtype=torch.double))
    pixel = output.embeddings[1, :, 5, 7]
    expected = torch.einsum("d,ckd->ck", pixel, model.head.memory.prototypes)  # type: ignore[union-attr,arg-type]
    assert_close(dense(output.similarities)[16 * 24 + 5 * 24 + 7], expected)
    label = torch.randint(0, 3, (2, 64, 96))
    clustering, observation = model.head.memory.assign(output, label, model.stride)  # type: ignore[union-attr,operator]
    assert len(clustering.member) == len(observation.embeddings) == 2 * 16 * 24


def test_features_are_the_contexts_maps() -> None:
    model = toy()
    image = torch.rand(1, 3, 64, 96, dtype=torch.double)
    assert model.feature_strides == [8, 16, 32, 64]
    output = model(image)
    for feature, again, stride in zip(
        output.features, model.encoder_maps(image, model.encoder), model.feature_strides, strict=True
    ):
        assert torch.equal(feature, again)
        assert feature.shape[-2:] == tuple(-(-side // stride) for side in (64, 96))
    assert_close(output.features[1], colours(image, 16))

    class Negative(PoolEncoder):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [-feature for feature in super().forward(image)]

    assert_close(model.encoder_maps(image, Negative())[0], -output.features[0])


def test_half_precision_autocast_runs() -> None:
    torch.manual_seed(0)
    head = partial(PrototypeHead, num_prototypes=2)
    model = HRDASegmentor(MiTEncoder("b0"), SMALL_ATTENTION, head, 5, detail_size=32)
    for training in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model.train(training)(torch.rand(2, 3, 64, 64))
        assert output.logits.dtype == output.embeddings.dtype == torch.float
        assert output.logits.isfinite().all()


@pytest.mark.parametrize("name", ["single", "hrda"])
def test_config(name: str) -> None:
    make = instantiate(OmegaConf.load(CONF / "segmentor" / f"{name}.yaml"), _partial_=True)
    model = make(encoder=PoolEncoder(), decoder=FinestMap, head=ColourHead, num_classes=3, auxiliary=None)
    assert isinstance(model, Segmentor)
    assert isinstance(model, HRDASegmentor) == (name == "hrda")


def test_wrong_input() -> None:
    with pytest.raises(ProtosegError, match=r"detail_size: expected .* multiples of 32 .*got 500"):
        toy(500)
    with pytest.raises(ProtosegError, match=r"detail_size: expected .* got \[64\]"):
        toy([64])
    with pytest.raises(ProtosegError, match=r"training images of at least the detail crop \(64, 64\), got \(48, 96\)"):
        toy(64)(torch.rand(1, 3, 48, 96, dtype=torch.double))
    with pytest.raises(ProtosegError, match="expected images b 3 h w"):
        toy()(torch.rand(3, 64, 64))
