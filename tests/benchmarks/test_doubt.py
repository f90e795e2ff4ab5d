"""Scores of unknown things and label sets of the benchmarks, against loops."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from benchmarks.doubt import Found, before, label_sets, pseudo_labels
from benchmarks.unknown import Seen, judged, smoothed


def test_auroc_and_fpr_of_scores() -> None:
    draw = torch.Generator().manual_seed(0)
    unknown = torch.rand(2000, generator=draw) < 0.1
    score = torch.rand(2000, generator=draw) + 0.4 * unknown
    auroc, fpr = judged(score, unknown)
    assert auroc == pytest.approx(100 * float(binary_auroc(score, unknown.long())), abs=1e-3)
    level = score[unknown].sort().values[int(0.05 * unknown.sum()) - 1]
    assert fpr == pytest.approx(100 * float((score[~unknown] >= level).double().mean()))


def test_scores_find_what_lies_off_all_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    label = torch.arange(900) % 3
    means = 6 * torch.eye(3, 8)
    maps = means[label] + torch.randn(900, 8, generator=draw)
    logits = -torch.cdist(maps, means)
    scores = Seen(maps, logits, label, [4, 2, 2]).scores()
    strange = maps[:300] + torch.tensor([0.0, 0, 0, 20, 0, 0, 0, 0])
    both, unknown = torch.cat([maps[300:], strange]), torch.arange(900) >= 600
    for name in (
        "max-logit, which is the largest cosine",
        "Mahalanobis, embedding",
        "mixtures of 5 Gaussians, embedding",
        "10th of 1000 neighbours, embedding",
    ):
        assert judged(scores[name](both, -torch.cdist(both, means)), unknown)[0] > 99
    assert smoothed(torch.ones(30), (5, 6)).tolist() == pytest.approx([1.0] * 30)


def test_label_sets_cover_what_they_promise() -> None:
    draw = torch.Generator().manual_seed(0)
    p = torch.distributions.Dirichlet(torch.full((4,), 0.5)).sample((20_000,))
    truth = torch.multinomial(p, 1, generator=draw)[:, 0]
    order = p[0].argsort(descending=True).tolist()
    for place, c in enumerate(order):
        assert float(before(p)[0, c]) == pytest.approx(float(p[0, order[:place]].sum()), abs=1e-6)
        assert before(p[:1], torch.tensor([c])).item() == before(p)[0, c]
    results: dict[str, Found] = defaultdict(dict)
    label_sets([(p[:10_000], truth[:10_000])], {"new": [(p[10_000:], truth[10_000:])]}, "half", results)
    for way in ("LAC", "LAC by class", "APS"):
        assert results[f"{way}, half, new"]["covered"] == pytest.approx([90], abs=1)
        assert 1 < results[f"{way}, half, new"]["size"][0] < 4
    assert results["LAC by class, half, new"]["least"] == pytest.approx([90], abs=3)


def test_as_many_pseudo_labels_by_each_confidence() -> None:
    p = torch.tensor([[0.9, 0.1], [0.85, 0.15], [0.6, 0.4], [0.3, 0.7]])
    truth, own = torch.tensor([1, 0, 0, 1]), p.amax(1).logit()
    by_class = torch.tensor([-1.0, 2.0, 1.0, 3.0])
    results: dict[str, Found] = defaultdict(dict)
    pseudo_labels([(p, truth, torch.stack([own, by_class], 1))], ["softmax", "class"], results)
    assert results["pseudo-labels, softmax"] == {"kept": [50], "right": [50], "of a class": [25]}
    assert results["pseudo-labels, class"] == {"kept": [50], "right": [100], "of a class": [50]}
