"""HRDA's detail loss: on the crop's own labels and pixel weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from protoseg.losses.adaptation import DetailCrossEntropy, MixedDetailCrossEntropy, on_detail
from protoseg.losses.segmentation import CrossEntropy
from protoseg.losses.term import Mixed, Seen, Step
from protoseg.types import Detail, ProtosegError, Rest, SegOutput

BOX = (8, 16, 16, 24)  # of an image of 32 x 48 at stride 4


def batch() -> Seen:
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 32, 48))
    label[0, 8:12] = -1
    detail = Detail(torch.randn(2, 3, 4, 6, dtype=torch.double, requires_grad=True), BOX)
    logits = torch.randn(2, 3, 8, 12, dtype=torch.double)
    return Seen(SegOutput(logits=logits, embeddings=logits, detail=detail), label, stride=4)


def pixel_losses(source: Seen) -> torch.Tensor:
    """Cross-entropy of each pixel of the crop, by a loop; 0 where unlabelled."""
    full = F.interpolate(source.output.detail.logits, (16, 24), mode="bilinear").log_softmax(1)  # type: ignore[union-attr]
    losses = torch.zeros(2, 16, 24, dtype=torch.double)
    for i in range(2):
        for y in range(16):
            for x in range(24):
                label = int(source.label[i, 8 + y, 16 + x])
                losses[i, y, x] = 0 if label == -1 else -full[i, label, y, x]
    return losses


def adaptation(mixed: Seen, weight: torch.Tensor) -> Step:
    unused: Any = None
    return Step(unused, unused, Mixed(mixed.output, mixed.label, mixed.stride, pasted=unused, weight=weight))


def labelled(seen: Seen) -> Step:
    return Step(nn.Identity(), seen)


def test_labelled_images_against_a_loop() -> None:
    source = batch()
    count = (source.label[:, 8:24, 16:40] != -1).sum()
    torch.testing.assert_close(DetailCrossEntropy()(labelled(source)), pixel_losses(source).sum() / count)


def test_a_rest_is_that_of_the_crop() -> None:
    seen, classes = batch(), torch.tensor([[True, False, True], [False, False, True]])
    rest = Rest(seen.label == -1, classes)
    full = F.interpolate(seen.output.detail.logits, (16, 24), mode="bilinear").softmax(1)  # type: ignore[union-attr]
    inside = rest.pixels[:, 8:24, 16:40]
    more = -(full * classes[:, :, None, None]).sum(1).log()[inside].sum()
    expected = (pixel_losses(seen).sum() + more) / (2 * 16 * 24)
    torch.testing.assert_close(DetailCrossEntropy()(labelled(replace(seen, rest=rest))), expected)


def test_weights_sum_to_the_papers_total() -> None:
    source = batch()
    fused, detail = CrossEntropy(weight=0.9), DetailCrossEntropy(weight=0.1)
    total = fused.weight * fused(labelled(source)) + detail.weight * detail(labelled(source))
    full = F.interpolate(source.output.logits, (32, 48), mode="bilinear")
    expected = 0.9 * F.cross_entropy(full, source.label, ignore_index=-1) + 0.1 * detail(labelled(source))
    torch.testing.assert_close(total, expected)


def test_mixed_images_against_a_loop() -> None:
    mixed = batch()
    weight = torch.rand(2, 32, 48, dtype=torch.double)
    count = (mixed.label[:, 8:24, 16:40] != -1).sum()
    expected = (pixel_losses(mixed) * weight[:, 8:24, 16:40]).sum() / count
    value = MixedDetailCrossEntropy()(adaptation(mixed, weight))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert mixed.output.detail.logits.grad.isfinite().all()  # type: ignore[union-attr]


def test_unlabelled_crop_is_zero_not_nan() -> None:
    source = batch()
    source = replace(source, label=torch.full_like(source.label, -1))
    assert float(DetailCrossEntropy()(labelled(source)).detach()) == 0
    assert float(MixedDetailCrossEntropy()(adaptation(source, torch.ones(2, 32, 48))).detach()) == 0


def test_model_without_detail() -> None:
    with pytest.raises(ProtosegError, match="expected a model with a detail crop, got none; set segmentor=hrda"):
        on_detail(batch().output._replace(detail=None))
