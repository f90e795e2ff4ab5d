"""Fused readings of the cosines against the plain formulas, values and gradients."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional import similarity
from protoseg.functional.prototypes import cluster, pixel_prototype_contrast, pixel_prototype_distance
from protoseg.functional.similarity import FusedSimilarities, Similarities, similarities
from tests.functional.dense import dense, plain

N = 700  # three pieces of MIN_ROWS


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def case(c: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    label = torch.randint(0, c, (N,))
    label[::13] = -1
    return unit(N, 6, dtype=dtype), unit(c, k, 6, dtype=dtype), label


def whole_loss(cosines: Similarities, label: Tensor) -> Tensor:
    """Every reading at once, as in training."""
    target = cluster(cosines.own(label), label, cosines.num_classes).target
    ce = F.cross_entropy(cosines.scores / 0.1, label, ignore_index=-1)
    return ce + 0.3 * pixel_prototype_contrast(cosines, target, 0.07) + 0.2 * pixel_prototype_distance(cosines, target)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PIECE_CPU", 1)


@pytest.mark.parametrize(("c", "k"), [(5, 3), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("keep_bytes", [0, 10**9])
@pytest.mark.parametrize("piece", [1, 2**20])
def test_values_and_gradient_equal_the_plain_formulas(
    c: int, k: int, keep_bytes: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "PIECE_CPU", piece)
    embeddings, prototypes, label = case(c, k)
    leaf, fused = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    ours, theirs = FusedSimilarities(fused, prototypes, keep_bytes), plain(leaf, prototypes)
    assert (ours.num_classes, ours.num_prototypes) == (theirs.num_classes, theirs.num_prototypes) == (c, k)
    target = torch.randint(-1, c * k, (N,))
    close = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(ours.scores, theirs.scores, **close)
    torch.testing.assert_close(ours.own(label), theirs.own(label), **close)
    torch.testing.assert_close(ours.at(target), theirs.at(target), **close)
    torch.testing.assert_close(ours.logsumexp(0.07), theirs.logsumexp(0.07), **close)
    torch.testing.assert_close(dense(ours), theirs.cosines.detach(), **close)
    losses = whole_loss(ours, label), whole_loss(theirs, label)
    torch.testing.assert_close(*losses, **close)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(fused.grad, leaf.grad, **close)


def test_fp32_within_1e_5() -> None:
    embeddings, prototypes, label = case(5, 3)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = embeddings.to(dtype).requires_grad_()
        whole_loss(FusedSimilarities(leaf, prototypes.to(dtype)), label).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[1].abs().max()


@pytest.mark.parametrize(
    "read",
    [
        lambda s: s.scores,
        lambda s: s.at(torch.arange(8) % 6),
        lambda s: s.logsumexp(0.2),
        lambda s: s.scores.sum(1) * s.logsumexp(0.2) + s.at(torch.arange(8) % 6) ** 2,
    ],
)
@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_gradcheck_of_each_reading(read: Callable[[Similarities], Tensor], keep_bytes: int) -> None:
    torch.manual_seed(0)
    embeddings, prototypes = unit(8, 4).requires_grad_(), unit(3, 2, 4)
    assert torch.autograd.gradcheck(lambda e: read(FusedSimilarities(e, prototypes, keep_bytes)), embeddings)


def test_equal_cosines_share_the_gradient_of_their_maximum() -> None:
    prototypes = unit(2, 1, 4).expand(2, 3, 4)  # three times the same
    leaf = unit(5, 4).requires_grad_()
    (theirs,) = torch.autograd.grad(plain(leaf, prototypes).scores.square().sum(), leaf)
    (ours,) = torch.autograd.grad(FusedSimilarities(leaf, prototypes).scores.square().sum(), leaf)
    torch.testing.assert_close(ours, theirs)


def test_small_temperatures_do_not_underflow() -> None:
    embeddings, prototypes = unit(4, 64, dtype=torch.float32), unit(2, 2, 64, dtype=torch.float32)
    leaf = embeddings.requires_grad_()
    value = FusedSimilarities(leaf, prototypes).logsumexp(0.001)
    value.sum().backward()
    torch.testing.assert_close(value, plain(embeddings, prototypes).logsumexp(0.001))
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_several_backward_passes_do_not_add_up() -> None:
    embeddings, prototypes, _ = case(5, 3)
    leaf = embeddings.requires_grad_()
    cosines = FusedSimilarities(leaf, prototypes)
    first, second = cosines.scores.square().sum(), cosines.logsumexp(0.1).sum()
    alone = [torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (first, second, first)]
    (both,) = torch.autograd.grad(first + second, leaf)
    torch.testing.assert_close(alone[0], alone[2], atol=0, rtol=0)
    torch.testing.assert_close(alone[0] + alone[1], both)


def test_prototypes_may_move_between_forward_and_backward() -> None:
    for shape in ((5, 3, 6), (1, 3, 6), (3, 1, 6)):
        embeddings, prototypes = unit(4, 6).requires_grad_(), unit(*shape)
        before = prototypes.clone()
        cosines = FusedSimilarities(embeddings, prototypes, keep_bytes=0)
        prototypes.zero_()
        (gradient,) = torch.autograd.grad(cosines.scores.sum(), embeddings)
        (expected,) = torch.autograd.grad(plain(embeddings, before).scores.sum(), embeddings)
        torch.testing.assert_close(gradient, expected)


def test_what_is_kept() -> None:
    embeddings, prototypes, _ = case(5, 3)
    assert FusedSimilarities(embeddings, prototypes)._store.kept is None  # no gradient, nothing to keep for
    leaf = embeddings.requires_grad_()
    assert FusedSimilarities(leaf, prototypes)._store.kept is not None
    assert FusedSimilarities(leaf, prototypes, keep_bytes=N * 15 * 8 - 1)._store.kept is None
    with torch.no_grad():
        assert FusedSimilarities(leaf, prototypes)._store.kept is None


def test_nothing_stays_behind() -> None:
    embeddings, prototypes, label = case(5, 3)
    cosines = FusedSimilarities(embeddings.requires_grad_(), prototypes)
    whole_loss(cosines, label).backward()
    store = weakref.ref(cosines._store)
    gc.disable()
    try:
        del cosines
        assert store() is None, "a cycle of references keeps the cosines until the garbage collector comes"
    finally:
        gc.enable()


@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_half_precision_around_it_changes_nothing(keep_bytes: int) -> None:
    embeddings, prototypes, label = case(5, 3, torch.float32)
    results = []
    for enabled in (False, True):
        leaf = embeddings.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            whole_loss(FusedSimilarities(leaf, prototypes, keep_bytes), label).backward()
        results.append(leaf.grad)
    assert torch.equal(*results)  # type: ignore[arg-type]


def test_a_compiler_sees_the_plain_formulas() -> None:
    embeddings, prototypes, label = case(5, 3)

    def loss(e: Tensor) -> Tensor:
        cosines = similarities(e, prototypes)
        target = cluster(cosines.own(label), label, cosines.num_classes).target
        return cosines.scores.square().sum() + pixel_prototype_contrast(cosines, target)

    leaves = [embeddings.clone().requires_grad_() for _ in range(2)]
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    values = loss(leaves[0]), compiled(leaves[1])
    torch.testing.assert_close(*values)
    for value in values:
        value.backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_class_255_of_a_wide_label_space() -> None:
    torch.manual_seed(0)
    embeddings, prototypes = unit(40, 6).requires_grad_(), unit(300, 2, 6)
    label = torch.full((40,), 255)
    label[:5] = -1
    cosines = FusedSimilarities(embeddings, prototypes)
    target = cluster(cosines.own(label), label, cosines.num_classes).target
    assert (target[:5] == -1).all()
    assert set(target[5:].tolist()) == {510, 511}
    torch.testing.assert_close(cosines.own(label)[5:], plain(embeddings, prototypes).cosines.detach()[5:, 255])
