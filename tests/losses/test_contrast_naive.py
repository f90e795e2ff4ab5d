"""Every preset of pixel contrast against a naive loop over pixels, value and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.losses import contrast_target
from protoseg.losses.contrast import ClassMeanContrast, CycleAssociation, PixelToPixelContrast, SupervisedPixelContrast
from protoseg.losses.contrast_target import PrototypeGuidedContrast, UnreliablePixelContrast
from protoseg.losses.term import Step
from protoseg.types import IGNORE_INDEX
from tests.losses.contrast_case import (
    MANY,
    PRESETS,
    SIDE,
    STRIDE,
    Case,
    cells,
    make,
    record,
    target_cells,
    vector,
    warm,
)


def nce(anchor: Tensor, positive: Tensor, negatives: list[Tensor], t: float) -> Tensor:
    top = (anchor @ positive / t).exp()
    return -torch.log(top / (top + sum((anchor @ n / t).exp() for n in negatives)))


def class_mean(losses: dict[int, list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(values).mean() for values in losses.values() if values]).mean()


def naive_pgpc(term: PrototypeGuidedContrast, case: Case, batch: Step, drawn: dict[str, Any]) -> Tensor:
    memory = term.memory if term.memory is not None else case.model.head.memory
    losses: dict[int, list[Tensor]] = {}
    for b, y, x, v, u in target_cells(case):
        if case.confidence[b, v, u] < term.reliable:
            continue
        c = int(case.pseudo_label[b, v, u])
        anchor = vector(term.projection, batch.mixed.output, b, y, x)
        placed = [p for p, updates in zip(memory.prototypes[c], memory.updates[c], strict=True) if updates > 0]
        negatives = [f for kind in ("others", "own") for f, ok in zip(*(r[c] for r in drawn[kind]), strict=True) if ok]
        if placed:
            nearest = max(placed, key=lambda p, a=anchor: float(a.detach() @ p))
            losses.setdefault(c, []).append(nce(anchor, nearest, negatives, term.temperature))
    return class_mean(losses)


def naive_u2pl(term: UnreliablePixelContrast, case: Case, batch: Step, drawn: dict[str, Any]) -> Tensor:
    said = batch.target.teacher
    share = {k: said.logits[k[0], :, k[1], k[2]].softmax(0) for k in target_cells(case)}
    entropy = {k: -float((p * p.log()).sum()) for k, p in share.items()}
    ordered = sorted(entropy.values())
    bound = ordered[int(term.entropy_share * (len(ordered) - 1))]
    reliable = [k for k in target_cells(case) if entropy[k] <= bound]
    means = {}
    for c in range(4):
        own = [vector(term.averaged, said, *k[:3]) for k in reliable if case.pseudo_label[k[0], k[3], k[4]] == c]
        if own:
            means[c] = F.normalize(torch.stack(own).sum(0), dim=0)
    losses: dict[int, list[Tensor]] = {}
    (index, valid), (features, exist) = drawn["sample"], drawn["own"]
    side = SIDE // STRIDE
    for b, y, x, v, u in reliable:
        c = int(case.pseudo_label[b, v, u])
        if case.confidence[b, v, u] > term.confident:
            slot = next(s for s in range(MANY) if valid[c, s] and index[c, s] == (b * side + y) * side + x)
            negatives = [f for f, ok in zip(features[c, slot], exist[c, slot], strict=True) if ok]
            anchor = vector(term.projection, batch.mixed.output, b, y, x)
            losses.setdefault(c, []).append(nce(anchor, means[c], negatives, term.temperature))
    return class_mean(losses)


def pairs(vectors: list[Tensor], labels: list[int], weights: list[Any], anchors: int, t: float) -> Tensor:
    losses = []
    for i in range(anchors):
        s = [(vectors[i] @ v / t).exp() for v in vectors]
        rest = sum(s[k] for k in range(len(s)) if labels[k] != labels[i])
        own = [j for j in range(len(s)) if labels[j] == labels[i] and j != i]
        total = sum(weights[i] * weights[j] * -torch.log(s[j] / (s[j] + rest)) for j in own)
        losses.append(total / max(1, len(own)))
    return torch.stack(losses).mean()


def naive_pixel_to_pixel(term: PixelToPixelContrast, case: Case, batch: Step, drawn: Any) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for images, weight in ((batch.labelled, torch.ones_like(case.weight)), (batch.mixed, case.weight)):
        maps = torch.cat([F.interpolate(f, (5, 7), mode="bilinear") for f in images.output.features], 1)
        vectors, labels, weights = [], [], []
        for b in range(2):
            for y in range(5):
                for x in range(7):
                    v, u = int((y + 0.5) * SIDE / 5), int((x + 0.5) * SIDE / 7)
                    if images.label[b, v, u] != IGNORE_INDEX:
                        vectors.append(F.normalize(maps[b, :, y, x], dim=0))
                        labels.append(int(images.label[b, v, u]))
                        weights.append(weight[b, v, u])
        total = total + pairs(vectors, labels, weights, len(vectors), term.temperature)
    return total


def naive_sepico(term: ClassMeanContrast, case: Case, batch: Step, drawn: dict[str, Any]) -> Tensor:
    shown = case.pseudo_label.masked_fill(case.pasted, IGNORE_INDEX)
    means, classes = drawn["means"]
    losses, vectors = [], []
    for images, label in ((batch.labelled, case.label), (batch.mixed, shown)):
        for b, y, x, *_ in cells(case):
            cell = label[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten().tolist()
            winner = max(set(cell), key=cell.count)
            if cell.count(winner) < 0.75 * 4 or winner not in classes:
                continue
            vectors.append(vector(term.projection, images.output, b, y, x))
            shares = {c: (vectors[-1] @ means[c] / term.temperature).exp() for c in classes}
            losses.append(-torch.log(shares[winner] / sum(shares.values())))
    mean = sum(vectors) / len(vectors)
    shares = [(mean @ means[c] / term.temperature).exp() for c in classes]
    uniform = -sum(torch.log(s / sum(shares)) for s in shares) / (len(classes) * torch.tensor(len(classes)).log())
    return torch.stack(losses).mean() + term.uniformity * uniform


def naive_pixel_contrast(term: SupervisedPixelContrast, case: Case, batch: Step, drawn: Any) -> Tensor:
    vectors, labels = [], []
    for b, y, x, v, u in cells(case):
        if case.label[b, v, u] != IGNORE_INDEX:
            vectors.append(vector(term.projection, batch.labelled.output, b, y, x))
            labels.append(int(case.label[b, v, u]))
    for b, y, x, v, u in target_cells(case):
        if case.confidence[b, v, u] >= term.reliable:
            vectors.append(vector(term.projection, batch.mixed.output, b, y, x))
            labels.append(int(case.pseudo_label[b, v, u]))
    anchors = len(vectors)
    for features, exist in (drawn["keys"], drawn["regions"]):
        for c in range(4):
            keys = [f for f, ok in zip(features[c], exist[c], strict=True) if ok]
            vectors += keys
            labels += [c] * len(keys)
    return pairs(vectors, labels, [1.0] * len(labels), anchors, term.temperature)


def standard_shares(cosines: list[Tensor]) -> list[Tensor]:
    fixed = torch.stack([x.detach() for x in cosines])
    scores = [((x - fixed.mean()) / fixed.std()).exp() for x in cosines]
    return [x / sum(scores) for x in scores]


def naive_cycle(term: CycleAssociation, case: Case, batch: Step, drawn: Any) -> Tensor:
    losses, same = [], nn.Identity()
    for image in range(2):
        label = {(y, x): int(case.label[b, v, u]) for b, y, x, v, u in cells(case) if b == image}
        label = {at: c for at, c in label.items() if c != IGNORE_INDEX}
        source = {at: vector(same, batch.labelled.output, image, *at) for at in label}
        shown = [(y, x) for b, y, x, *_ in target_cells(case) if b == image]
        plain = [vector(same, batch.mixed.output, image, *at) for at in shown]
        target = []
        for one in plain:
            alike = standard_shares([one @ other for other in plain])
            mean = sum(share * other for share, other in zip(alike, plain, strict=True))
            target.append(F.normalize(one + mean, dim=0))
        for at, one in source.items():
            there = standard_shares([one @ t for t in target])
            near = max(range(len(target)), key=lambda j, s=there: float(s[j]))
            back = dict(zip(source, standard_shares([target[near] @ s for s in source.values()]), strict=True))
            home = max(back, key=lambda k, s=back: float(s[k]))
            if label[home] == label[at]:
                losses.append(-torch.log(there[near] * back[home]))
    return torch.stack(losses).mean()


NAIVE: dict[str, Callable[..., Tensor]] = {
    "pgpc": naive_pgpc,
    "cycle_association": naive_cycle,
    "pixel_to_pixel": naive_pixel_to_pixel,
    "u2pl": naive_u2pl,
    "sepico_proto": naive_sepico,
    "pixel_contrast": naive_pixel_contrast,
}


def listen(term: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Lists that fill with whatever the term draws at random."""
    heard: dict[str, list[Any]] = {}
    if isinstance(term, PrototypeGuidedContrast):
        heard["others"] = record(term.reliable_queue, "draw_others")
    if hasattr(term, "unreliable_queue"):
        heard["own"] = record(term.unreliable_queue, "draw")
        monkeypatch.setattr(contrast_target, "sample_per_class", contrast_target.sample_per_class)
        heard["sample"] = record(contrast_target, "sample_per_class")
    if isinstance(term, SupervisedPixelContrast):
        heard["keys"] = record(term.queue, "draw")
        heard["regions"] = record(term.region_queue, "draw")
    return heard


@pytest.mark.parametrize(
    ("preset", "head"), [*[(preset, "parametric") for preset in PRESETS], ("pgpc", "prototype"), ("u2pl", "prototype")]
)
def test_against_a_naive_loop(preset: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(head=head)
    term = make(preset, case)
    if head == "prototype" and preset == "pgpc":
        case.model.head.memory.updates[:3] = 1  # the last class is not yet placed
    warm(term, case)
    drawn: dict[str, Any] = {}
    if isinstance(term, ClassMeanContrast):
        drawn["means"] = (term.means.prototypes[:, 0].clone(), [c for c in range(4) if term.means.updates[c, 0] > 0])
    heard = listen(term, monkeypatch)
    batch = case.batch()
    torch.manual_seed(5)
    loss = term(batch)
    drawn.update({name: values[0] for name, values in heard.items()})
    expected = NAIVE[preset](term, case, batch, drawn)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
    assert loss > 0.01
    inputs = [case.features["mixed"], *(p for p in term.parameters() if p.requires_grad)]
    if term.uses_labelled_graph:
        inputs.append(case.features["source"])
    for ours, theirs in zip(
        torch.autograd.grad(loss, inputs, retain_graph=True),
        torch.autograd.grad(expected, inputs, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    assert all(torch.isfinite(value).all() for value in term.statistics.values())


def test_classes_keep_their_number_when_others_are_missing() -> None:
    """Classes 0 and 2 have no pixel: anchors of 1 and 3 still meet the prototypes and queues of 1 and 3."""
    case = Case()
    term = make("pgpc", case)
    for labels in (case.label, case.pseudo_label):
        labels[labels == 0] = 1
        labels[labels == 2] = 3
    warm(term, case)
    assert isinstance(term, PrototypeGuidedContrast)
    assert (term.memory.updates.sum(1) > 0).tolist() == [False, True, False, True]
    assert (term.reliable_queue.fill > 0).tolist() == [False, True, False, True]
    term.memory.prototypes[[0, 2]] = float("nan")  # never touched
    drawn = {"others": record(term.reliable_queue, "draw_others"), "own": record(term.unreliable_queue, "draw")}
    batch = case.batch()
    loss = term(batch)
    expected = naive_pgpc(term, case, batch, {name: values[0] for name, values in drawn.items()})
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)


def test_regions_are_the_means_of_a_class_in_an_image() -> None:
    """What a first step writes into their queue, by a loop over the images."""
    case = Case()
    term: Any = make("pixel_contrast", case)
    batch = case.batch()
    term(batch)
    regions: dict[tuple[str, int, int], list[Tensor]] = {}
    for b, y, x, v, u in cells(case):
        if case.label[b, v, u] != IGNORE_INDEX:
            own = regions.setdefault(("source", b, int(case.label[b, v, u])), [])
            own.append(vector(term.projection, batch.labelled.output, b, y, x))
    for b, y, x, v, u in target_cells(case):
        if case.confidence[b, v, u] >= term.reliable:
            own = regions.setdefault(("mixed", b, int(case.pseudo_label[b, v, u])), [])
            own.append(vector(term.projection, batch.mixed.output, b, y, x))
    assert len(regions) > 8
    for c in range(4):
        wanted = [F.normalize(torch.stack(own).mean(0), dim=0) for (*_, k), own in regions.items() if k == c]
        assert term.region_queue.fill[c] == len(wanted)
        kept = term.region_queue.features[c, : len(wanted)]
        cosines = kept @ torch.stack(wanted).T
        torch.testing.assert_close(cosines.amax(1), torch.ones(len(wanted)).double())
        assert cosines.argmax(1).unique().numel() == len(wanted)
    assert not hasattr(make("pixel_contrast", case, regions=0), "region_queue")
