"""Tree-min and tree-triplet loss and the paths of a tree, against loops over pixels and nodes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional.contrast import tree_triplet
from protoseg.functional.hierarchy import ancestors, lines, path_scores, tree_min

# Five classes: 0 and 1 in group 5, 2 in group 6, which with 5 is in group 7; 3 in group 7; 4 at the top.
PARENTS = (5, 5, 6, 7, -1, 7, 7, -1)
FLAT = (-1,) * 4


def line(node: int, parents: tuple[int, ...] = PARENTS) -> list[int]:
    """A node and those above it."""
    return [] if node < 0 else [node, *line(parents[node], parents)]


def below(node: int, parents: tuple[int, ...] = PARENTS) -> list[int]:
    return [other for other in range(len(parents)) if node in line(other, parents)]


def naive_tree_min(logits: Tensor, label: Tensor, parents: tuple[int, ...], gamma: float) -> Tensor:
    out = torch.zeros(label.shape, dtype=logits.dtype)
    for b, y, x in torch.ones_like(label).nonzero().tolist():
        s, truth = logits[b, :, y, x].sigmoid(), int(label[b, y, x])
        for node in range(len(parents)):
            if node in line(truth, parents):
                p = min(s[other] for other in line(node, parents))
                out[b, y, x] -= (1 - p) ** gamma * p.log()
            elif truth not in line(node, parents):
                p = max(s[other] for other in below(node, parents))
                out[b, y, x] -= p**gamma * (1 - p).log()
    return out


def maps(parents: tuple[int, ...] = PARENTS, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return scale * torch.randn(2, len(parents), 5, 6, dtype=torch.double), torch.randint(len(parents), (2, 5, 6))


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
def test_tree_min_is_the_loop_over_pixels_and_nodes(gamma: float) -> None:
    logits, label = maps()  # labels of groups among them
    assert label.unique().tolist() == [*range(8)]
    torch.testing.assert_close(tree_min(logits, label, PARENTS, gamma), naive_tree_min(logits, label, PARENTS, gamma))


def test_of_a_flat_tree_it_is_the_binary_focal_loss() -> None:
    logits, label = maps(FLAT)
    truth = F.one_hot(label, 4).movedim(3, 1).double()
    plain = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    torch.testing.assert_close(tree_min(logits, label, FLAT, 0.0), plain.sum(1))
    torch.testing.assert_close(tree_min(logits, label, FLAT), ((1 - (-plain).exp()) ** 2 * plain).sum(1))


def test_scores_that_fit_the_tree_have_the_loss_of_a_flat_one() -> None:
    """Groups at least as sure as their members: no minimum and no maximum changes anything."""
    logits, label = maps()
    for node, parent in enumerate(PARENTS):
        if parent >= 0:
            logits[:, parent] = torch.maximum(logits[:, parent], logits[:, node])
    label = label.clamp_max(4)
    truth = ancestors(PARENTS)[label].movedim(3, 1)
    plain = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    torch.testing.assert_close(tree_min(logits, label, PARENTS, 0.0), plain.sum(1))


def test_its_gradient_is_right_and_finite_at_any_score() -> None:
    logits, label = maps()
    few = label[:, :1, :2]
    assert torch.autograd.gradcheck(lambda x: tree_min(x, few, PARENTS), logits[:, :, :1, :2].requires_grad_())
    large = (1e4 * logits.detach().float()).requires_grad_()
    value = tree_min(large, label, PARENTS).sum()
    (gradient,) = torch.autograd.grad(value, large)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_lines_lead_to_the_top() -> None:
    node = torch.tensor([*range(8), -1])
    found = lines(node, PARENTS)
    for column, each in zip(found.T.tolist(), node.tolist(), strict=True):
        assert column == [*line(each), -1, -1, -1][:3]
    assert torch.equal(lines(node, ()), node[None])
    for each in range(8):
        assert ancestors(PARENTS)[each].nonzero().flatten().tolist() == sorted(line(each))


def test_tree_triplet_is_the_loop_over_triplets() -> None:
    torch.manual_seed(0)
    a, p, n = (F.normalize(torch.randn(9, 4, dtype=torch.double), dim=1) for _ in range(3))
    margin, valid = torch.rand(9, dtype=torch.double), torch.arange(9) % 3 > 0

    def distance(one: Tensor, other: Tensor) -> float:
        return (1 - float(one @ other)) / 2

    losses = [max(0.0, distance(a[i], p[i]) - distance(a[i], n[i]) + float(margin[i])) for i in range(9) if valid[i]]
    assert 0.0 in losses
    assert tree_triplet(a, p, n, margin, valid) == pytest.approx(sum(losses) / 6)
    assert tree_triplet(a, p, n, margin, valid & False) == 0
    inputs = tuple(x.requires_grad_() for x in (a, p, n))
    assert torch.autograd.gradcheck(lambda *x: tree_triplet(*x, margin, valid), inputs)


def scored(logits: Tensor, fall_back: float | None = None) -> Tensor:
    paths = path_scores(PARENTS, fall_back).double()
    return paths[:, :-1] @ F.logsigmoid(logits) + paths[:, -1]


def test_a_path_has_the_sum_of_its_log_probabilities() -> None:
    """A class that lies higher counts for the levels below it, too, and a group is no end of a path."""
    logits = maps()[0][0, :, 0, 0]
    scores = scored(logits)
    s = logits.sigmoid()
    paths = [s[0] * s[5] * s[7], s[1] * s[5] * s[7], s[2] * s[6] * s[7], s[3] ** 2 * s[7], s[4] ** 3]
    torch.testing.assert_close(scores[:5], torch.stack(paths).log())
    assert scores[5:].max() < -1e3


def test_a_group_is_the_end_where_no_member_has_more_than_the_threshold() -> None:
    tau = 0.4
    for seed in range(200):
        torch.manual_seed(seed)
        logits = 2 * torch.randn(8, dtype=torch.double)
        s = logits.sigmoid().tolist()
        want = {node: math.prod(s[each] for each in line(node)) for node in range(8)}
        want[3], want[4] = want[3] * s[3], want[4] * s[4] ** 2
        want |= {5: want[5] * tau, 6: want[6] * tau, 7: want[7] * tau**2}
        scores = scored(logits, tau)
        torch.testing.assert_close(
            scores.exp(), torch.tensor([want[i] for i in range(8)], dtype=torch.double), rtol=1e-5, atol=0
        )
        best = int(scores.argmax())
        if best in (5, 6):
            assert all(s[i] <= tau for i in below(best) if i != best)
    for seed in range(50):
        torch.manual_seed(seed)
        logits = torch.randn(8, dtype=torch.double)
        assert int(scored(logits, 1.0).argmax()) in (4, 7)  # the highest level
