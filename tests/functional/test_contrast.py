"""Pixel contrast against golden vectors, naive loops, gradcheck and limit cases."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional import contrast
from protoseg.functional.contrast import (
    class_mean_contrast,
    entropy,
    entropy_bounds,
    info_nce,
    mean_feature_uniformity,
    nearest_prototype,
    pixel_to_pixel,
    supervised_contrast,
    surely_not,
)
from protoseg.types import IGNORE_INDEX

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("pixel_to_pixel_*.npz"))


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def naive_supervised(
    anchors: Tensor, label: Tensor, keys: Tensor, key_label: Tensor, weight: Tensor, temperature: float
) -> Tensor:
    vectors, labels = torch.cat([anchors, keys]), [*label.tolist(), *key_label.tolist()]
    weights = [*weight, *[torch.tensor(1.0)] * len(keys)]
    losses = []
    for i, own in enumerate(label.tolist()):
        if own == IGNORE_INDEX:
            continue
        s = [(anchors[i] @ v) / temperature for v in vectors]
        rivals = [s[k].exp() for k, other in enumerate(labels) if other not in (own, IGNORE_INDEX)]
        positives = [j for j, other in enumerate(labels) if other == own and j != i]
        terms = [weights[i] * weights[j] * -torch.log(s[j].exp() / (s[j].exp() + sum(rivals))) for j in positives]
        losses.append(sum(terms, torch.zeros((), dtype=torch.float64)) / max(1, len(positives)))
    return torch.stack(losses).mean()


def test_golden_files_are_there() -> None:
    assert len(GOLDEN) == 1


@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("chunk", [7, 1000])
def test_golden_pixel_to_pixel(file: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference shuffles pixels against labels for batches of several images; ours does only when asked to."""
    monkeypatch.setattr(contrast, "CHUNK", chunk)
    golden = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    features = golden["features"].requires_grad_()
    loss = pixel_to_pixel(features, golden["labels"], golden.get("weights"), released_order=True)
    loss.backward()
    torch.testing.assert_close(loss, golden["loss"], atol=1e-6, rtol=0)
    torch.testing.assert_close(features.grad, golden["grad"], atol=1e-6, rtol=0)
    assert (pixel_to_pixel(features, golden["labels"]) - golden["loss"]).abs() > 1e-3


def test_pixel_to_pixel_keeps_pixels_and_labels_together() -> None:
    torch.manual_seed(0)
    features, label = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randint(0, 3, (2, 3, 5))
    weight = torch.rand(2, 3, 5, dtype=torch.float64)
    label[1, 0, :3] = IGNORE_INDEX
    rows = torch.stack([F.normalize(features[b, :, y, x], dim=0) for b in range(2) for y in range(3) for x in range(5)])
    nothing, no_label = rows[:0], label.flatten()[:0]
    expected = naive_supervised(rows, label.flatten(), nothing, no_label, weight.flatten(), 1.0)
    torch.testing.assert_close(pixel_to_pixel(features, label, weight), expected)
    one_image = [pixel_to_pixel(features[:1], label[:1], weight[:1], released_order=order) for order in (True, False)]
    torch.testing.assert_close(*one_image)


@pytest.mark.parametrize("chunk", [4, 100])
def test_supervised_contrast_against_a_loop(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "CHUNK", chunk)
    torch.manual_seed(0)
    anchors, keys, weight = unit(13, 5).requires_grad_(), unit(7, 5), torch.rand(13, dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 1, 1, 2, 0, 1, IGNORE_INDEX, 2, 3, 0, 0])  # 3 stands alone
    key_label = torch.tensor([0, 1, 2, 4, IGNORE_INDEX, 1, 1])  # 4 has no anchor
    loss = supervised_contrast(anchors, label, keys, key_label, weight, 0.07)
    expected = naive_supervised(anchors, label, keys, key_label, weight, 0.07)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, anchors)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][8] == 0).all()  # an ignored pixel is no class
    assert torch.autograd.gradcheck(lambda a: supervised_contrast(a, label, keys, key_label, weight, 0.5), anchors)


def test_info_nce_against_a_loop_absent_classes_in_between() -> None:
    torch.manual_seed(0)
    c, a, m, t = 5, 4, 6, 0.5
    positive = (torch.rand(c, a, dtype=torch.float64) * 2 - 1).requires_grad_()
    negative = (torch.rand(c, a, m, dtype=torch.float64) * 2 - 1).requires_grad_()
    valid = torch.rand(c, a) > 0.3
    valid[1], valid[3, 1:] = False, False  # class 1 is absent: class 2 must meet its own negatives, not those of 1
    exist = torch.rand(c, 1, m) > 0.3
    exist[4] = False
    per_class = []
    for i in range(c):
        losses = []
        for j in range(a):
            if valid[i, j]:
                top = (positive[i, j] / t).exp()
                rest = sum((negative[i, j, k] / t).exp() for k in range(m) if exist[i, 0, k])
                losses.append(-torch.log(top / (top + rest)))
        if losses:
            per_class.append(torch.stack(losses).mean())
    assert len(per_class) == 4
    expected = torch.stack(per_class).mean()
    loss = info_nce(positive, negative, valid, exist, t)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (positive, negative)),
        torch.autograd.grad(expected, (positive, negative)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda p, n: info_nce(p, n, valid, exist, t), (positive, negative))


def test_info_nce_by_hand() -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    value = info_nce(torch.tensor([[0.8]]), torch.tensor([[[0.2, -0.4]]]), one, torch.ones(1, 1, 2, dtype=torch.bool))
    assert float(value) == pytest.approx(-log(exp(1.6) / (exp(1.6) + exp(0.4) + exp(-0.8))), rel=1e-6)


@pytest.mark.parametrize(("anchors", "negatives"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_info_nce_with_nothing_to_compare(anchors: bool, negatives: bool, temperature: float) -> None:
    positive, negative = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3, 4, requires_grad=True)
    valid, exist = torch.full((2, 3), anchors), torch.full((2, 1, 4), negatives)
    loss = info_nce(positive, negative, valid, exist, temperature)
    loss.backward()
    assert loss.item() == 0
    assert (positive.grad == 0).all()
    assert (negative.grad == 0).all()


@pytest.mark.parametrize("label", [[0], [IGNORE_INDEX] * 3, [0, 0, 0], [0, 1], [IGNORE_INDEX, 0, 1]])
def test_supervised_contrast_with_little_to_compare(label: list[int]) -> None:
    anchors = F.normalize(torch.randn(len(label), 4), dim=1).requires_grad_()
    loss = supervised_contrast(anchors, torch.tensor(label), temperature=0.07)
    loss.backward()
    assert loss.item() == 0  # no positive, or no negative
    assert torch.isfinite(anchors.grad).all()


def test_two_classes_are_enough() -> None:
    torch.manual_seed(0)
    anchors, label = unit(8, 4), torch.tensor([0, 1] * 4)
    assert supervised_contrast(anchors, label) > 0
    assert class_mean_contrast(anchors, label, unit(2, 4), torch.tensor([True, True])) > 0
    assert surely_not(torch.tensor([[0.0, 1.0]]), 3, 20).tolist() == [[True, False]]


def test_nearest_prototype_against_a_loop() -> None:
    torch.manual_seed(0)
    anchors, prototypes = unit(4, 3, 5).requires_grad_(), unit(4, 2, 5)
    placed = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    cosine = nearest_prototype(anchors, prototypes, placed)
    for c in range(4):
        for a in range(3):
            candidates = [(anchors[c, a] @ prototypes[c, k]).item() for k in range(2) if placed[c, k]]
            assert cosine[c, a].item() == pytest.approx(max(candidates, default=0))
    (gradient,) = torch.autograd.grad(cosine.sum(), anchors)
    assert torch.isfinite(gradient).all()
    assert (gradient[3] == 0).all()


def test_surely_not_by_hand() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0]])  # order of classes: 0 4 2 3 1
    assert surely_not(logits, 3, 20).tolist() == [[False, True, False, True, False]]
    assert surely_not(logits, 2, 4).tolist() == [[False, False, True, True, False]]
    assert surely_not(torch.ones(1, 1), 3, 20).tolist() == [[False]]
    assert surely_not(torch.zeros(1, 6), 3, 20).sum() == 3  # ties have an order, too


def test_entropy_and_its_bounds() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    assert entropy(logits).tolist() == pytest.approx([log(2), 0], abs=1e-6)
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0])
    valid = torch.tensor([True, True, True, True, True, False])
    assert [float(x) for x in entropy_bounds(values, valid, 0.25)] == [2, 4]
    assert [float(x) for x in entropy_bounds(values, valid, 0.1)] == [1, 5]
    entropy_bounds(values, torch.zeros(6, dtype=torch.bool), 0.2)


def test_class_mean_contrast_against_a_loop() -> None:
    torch.manual_seed(0)
    embeddings, means = unit(9, 4).requires_grad_(), unit(4, 4)
    placed = torch.tensor([True, False, True, True])
    label = torch.tensor([0, 1, 2, 3, IGNORE_INDEX, 0, 0, 3, IGNORE_INDEX])
    t, losses = 0.5, []
    for i, c in enumerate(label.tolist()):
        if c in (IGNORE_INDEX, 1):
            continue
        share = [(embeddings[i] @ means[j] / t).exp() for j in (0, 2, 3)]
        losses.append(-torch.log((embeddings[i] @ means[c] / t).exp() / sum(share)))
    expected = torch.stack(losses).mean()
    loss = class_mean_contrast(embeddings, label, means, placed, t)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, embeddings)[0], torch.autograd.grad(expected, embeddings)[0])
    known = [i for i, c in enumerate(label.tolist()) if c not in (IGNORE_INDEX, 1)]
    mean = sum(embeddings[i] for i in known) / len(known)
    weights = [(mean @ means[j] / t).exp() for j in (0, 2, 3)]
    uniform = -sum(torch.log(w / sum(weights)) for w in weights) / (3 * log(3))
    value = mean_feature_uniformity(embeddings, label, means, placed, t)
    torch.testing.assert_close(value, uniform)
    assert value > 1
    assert torch.autograd.gradcheck(lambda e: mean_feature_uniformity(e, label, means, placed, t), embeddings)


def test_uniformity_is_one_where_the_mean_feature_is_amid_the_classes() -> None:
    means, placed, label = torch.eye(3), torch.ones(3, dtype=torch.bool), torch.tensor([0, 1, 2])
    assert float(mean_feature_uniformity(means, label, means, placed, 0.1)) == pytest.approx(1, abs=1e-6)
    assert mean_feature_uniformity(means[:1].expand(3, 3), label, means, placed, 0.1) > 2


@pytest.mark.parametrize("loss", [class_mean_contrast, mean_feature_uniformity])
@pytest.mark.parametrize("placed", [[False] * 3, [True, False, False], [True] * 3])
@pytest.mark.parametrize("label", [[0, 1], [IGNORE_INDEX] * 2])
def test_class_means_with_little_to_compare(loss, placed: list[bool], label: list[int]) -> None:  # type: ignore[no-untyped-def]
    embeddings = F.normalize(torch.randn(2, 4), dim=1).requires_grad_()
    value = loss(embeddings, torch.tensor(label), unit(3, 4).float(), torch.tensor(placed))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()
    if sum(placed) < 2 or label[0] == IGNORE_INDEX:
        assert value.item() == 0
        assert (embeddings.grad == 0).all()


def test_half_precision_is_computed_in_fp32() -> None:
    torch.manual_seed(0)
    embeddings, label = F.normalize(torch.randn(40, 8), dim=1), torch.randint(0, 3, (40,))
    means, placed = F.normalize(torch.randn(3, 8), dim=1), torch.ones(3, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [
            supervised_contrast(embeddings, label),
            class_mean_contrast(embeddings, label, means, placed, 0.1),
            mean_feature_uniformity(embeddings, label, means, placed, 0.1),
        ]
    torch.testing.assert_close(values[0], supervised_contrast(embeddings, label))
    torch.testing.assert_close(values[1], class_mean_contrast(embeddings, label, means, placed, 0.1))
    torch.testing.assert_close(values[2], mean_feature_uniformity(embeddings, label, means, placed, 0.1))
