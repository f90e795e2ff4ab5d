"""Prototype mathematics against the reference's golden vectors, naive loops and hand-made cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional.prototypes import (
    Clustering,
    cluster,
    nearest_class_cosine,
    pixel_prototype_contrast,
    pixel_prototype_distance,
    prototype_sums,
    sinkhorn,
    update_prototypes,
    within_class_cosine,
)
from protoseg.functional.similarity import DenseSimilarities
from protoseg.types import IGNORE_INDEX, ProtosegError, Similarities
from tests.functional.dense import plain

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("prototype_step_*.npz"))


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def case(n: int = 300, c: int = 4, k: int = 3, d: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings near their class's first prototype, prototypes, labels with ignored pixels."""
    torch.manual_seed(0)
    prototypes, label = unit(c, k, d), torch.randint(0, c, (n,))
    embeddings = F.normalize(unit(n, d) + prototypes[label, 0], dim=1)
    label[:7] = IGNORE_INDEX
    return embeddings, prototypes, label


def clustered(cosines: Similarities, label: Tensor, assignment: str = "argmax") -> Clustering:
    return cluster(cosines.own(label), label, cosines.num_classes, assignment)


@pytest.mark.parametrize("file", GOLDEN, ids=lambda path: path.stem)
def test_golden_prototype_step(file: Path) -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    embeddings, prototypes = golden["embeddings"], golden["prototypes"]
    label = golden["labels"].where(golden["labels"] >= 0, IGNORE_INDEX)
    valid = label != IGNORE_INDEX
    c, k, d = prototypes.shape
    close = {"atol": 1e-6, "rtol": 0}

    similarity = plain(embeddings, prototypes)
    scores = similarity.scores
    torch.testing.assert_close(scores, golden["similarity_max"], **close)
    torch.testing.assert_close(F.layer_norm(scores, (c,)), golden["seg_logits_layernorm"], **close)
    plan = sinkhorn(similarity.own(label), label, c, valid)
    torch.testing.assert_close(plan[valid], golden["plan"][valid], **close)
    clustering = clustered(similarity, label)
    assert (clustering.target[valid] == golden["target"][valid]).all()
    member = clustering.member.where(scores.argmax(1) == label, -1)
    after = update_prototypes(prototypes.flatten(0, 1), *prototype_sums(embeddings, member, c * k), 0.999)
    torch.testing.assert_close(after.view(c, k, d), golden["prototypes_after"], **close)
    torch.testing.assert_close(pixel_prototype_contrast(similarity, clustering.target, 1.0), golden["ppc"], **close)
    torch.testing.assert_close(pixel_prototype_distance(similarity, clustering.target), golden["ppd"], **close)


def test_golden_files_are_there() -> None:
    assert len(GOLDEN) == 2


def test_similarity_and_own_class_against_a_loop() -> None:
    embeddings, prototypes, label = case(n=20)
    similarity = plain(embeddings, prototypes)
    own = similarity.own(label)
    for i in range(20):
        for c in range(4):
            for j in range(3):
                assert similarity.cosines[i, c, j] == pytest.approx(float(embeddings[i] @ prototypes[c, j]))
        if label[i] != IGNORE_INDEX:
            assert (own[i] == similarity.cosines[i, label[i]]).all()


def test_update_against_a_loop_and_empty_prototypes_stay() -> None:
    embeddings, prototypes, label = case()
    similarity = plain(embeddings, prototypes)
    label[label == 2] = IGNORE_INDEX  # class 2 has no pixel
    member = clustered(similarity, label).member
    after = update_prototypes(prototypes.flatten(0, 1), *prototype_sums(embeddings, member, 12), 0.9)
    for m, old in enumerate(prototypes.flatten(0, 1)):
        pixels = embeddings[member == m]
        if len(pixels) == 0:
            assert (after[m] == old).all()
        else:
            new = F.normalize(0.9 * old + 0.1 * F.normalize(pixels.sum(0), dim=0), dim=0)
            torch.testing.assert_close(after[m], new)
    assert (after[6:9] == prototypes[2]).all()


def test_ignored_pixels_have_no_target() -> None:
    embeddings, prototypes, label = case()
    clustering = clustered(plain(embeddings, prototypes), label)
    assert (clustering.target[label == IGNORE_INDEX] == -1).all()
    valid = label != IGNORE_INDEX
    assert (clustering.target[valid] // 3 == label[valid]).all()


def test_argmax_is_the_plan_and_the_released_draw_is_nearly_random() -> None:
    torch.manual_seed(0)
    n, k = 4000, 10
    similarity = DenseSimilarities(torch.rand(n, 1, k) * 0.5)
    label = torch.zeros(n, dtype=torch.int64)
    agreement = {}
    for assignment in ("argmax", "gumbel", "released"):
        clustering = clustered(similarity, label, assignment)
        agreement[assignment] = float((clustering.member == clustering.target).float().mean())
    assert agreement["argmax"] == 1
    assert agreement["released"] < 0.25  # 0.1 would be chance
    assert agreement["gumbel"] > 2 * agreement["released"]


def test_gumbel_draws_with_the_plans_probabilities() -> None:
    torch.manual_seed(0)
    own = torch.tensor([[0.50, 0.46], [0.46, 0.50]], dtype=torch.float64).repeat(20_000, 1)
    label = torch.zeros(40_000, dtype=torch.int64)
    plan = sinkhorn(own, label, 1)
    drawn = cluster(own, label, 1, "gumbel").member
    assert float((drawn[::2] == 0).double().mean()) == pytest.approx(float(plan[0, 0]), abs=0.01)
    assert 0.55 < float(plan[0, 0]) < 0.9


def test_unknown_assignment() -> None:
    with pytest.raises(ProtosegError, match="argmax, gumbel, released"):
        cluster(torch.rand(2, 1), torch.zeros(2, dtype=torch.int64), 1, "soft")


@pytest.mark.parametrize("loss", [pixel_prototype_contrast, pixel_prototype_distance])
def test_losses_against_a_loop_and_gradcheck(loss) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    similarity = (torch.rand(6, 3, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    target = torch.tensor([0, 5, -1, 2, 2, 3])
    flat, total = similarity.detach().flatten(1), 0.0
    for i, t in enumerate(target.tolist()):
        if t < 0:
            continue
        if loss is pixel_prototype_contrast:
            total += float(torch.logsumexp(flat[i] / 0.1, 0) - flat[i, t] / 0.1) / 5
        else:
            total += float((1 - flat[i, t]) ** 2) / 5
    assert float(loss(DenseSimilarities(similarity), target)) == pytest.approx(total)
    assert torch.autograd.gradcheck(lambda s: loss(DenseSimilarities(s), target), similarity)


@pytest.mark.parametrize("loss", [pixel_prototype_contrast, pixel_prototype_distance])
def test_losses_without_a_labelled_pixel_are_zero_with_zero_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    similarity = torch.rand(4, 2, 3, requires_grad=True)
    value = loss(DenseSimilarities(similarity), torch.full((4,), -1))
    value.backward()
    assert float(value) == 0
    assert (similarity.grad == 0).all()


def test_one_class_one_prototype() -> None:
    embeddings, prototypes = unit(10, 4), unit(1, 1, 4)
    similarity = plain(embeddings, prototypes)
    target = clustered(similarity, torch.zeros(10, dtype=torch.int64)).target
    assert (target == 0).all()
    assert float(pixel_prototype_contrast(similarity, target)) == 0


def test_within_class_cosine() -> None:
    one = F.normalize(torch.ones(1, 1, 4), dim=2)
    assert within_class_cosine(one.expand(2, 3, 4)).tolist() == pytest.approx([1, 1])
    assert within_class_cosine(torch.eye(4)[None]).tolist() == pytest.approx([0])
    assert within_class_cosine(one).isnan().all()


def test_nearest_class_cosine_against_a_loop() -> None:
    torch.manual_seed(0)
    prototypes = unit(3, 2, 4)
    table = nearest_class_cosine(prototypes)
    for a in range(3):
        for b in range(3):
            pairs = prototypes[a] @ prototypes[b].T
            expected = pairs.max() if a != b else (pairs.sum() - 2) / 2
            torch.testing.assert_close(table[a, b], expected)
    assert (nearest_class_cosine(unit(3, 1, 4)).diagonal() == 1).all()
