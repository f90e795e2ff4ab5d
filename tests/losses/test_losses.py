"""Loss terms: class weights, hard pixels, ignored pixels, gradients, wrong use."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from protoseg.functional.resize import downsample_label
from protoseg.losses import (
    AuxiliaryCrossEntropy,
    CrossEntropy,
    PixelPrototypeContrast,
    PixelPrototypeDistance,
    Seen,
    Step,
)
from protoseg.losses.segmentation import balanced_class_weights, cross_entropy, hard_pixels, weighted_cross_entropy
from protoseg.nn import PrototypeHead
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError, Rest, SegOutput


def prepared(term: CrossEntropy) -> CrossEntropy:
    term.prepare(None, LabelSpace("toy", ("a", "b", "c"), ((0, 0, 0),) * 3))
    return term


def step(output: SegOutput, label: torch.Tensor) -> Step:
    return Step(torch.nn.Identity(), Seen(output, label, 4))


def logits_and_label() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randint(0, 4, (2, 6, 5))
    label[0, :2] = -1
    return logits, label


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0]])
def test_cross_entropy_against_torch(weights: list[float] | None) -> None:
    logits, label = logits_and_label()
    tensor = None if weights is None else torch.tensor(weights).double()
    expected = F.cross_entropy(logits, label, tensor, ignore_index=-1)
    torch.testing.assert_close(cross_entropy(logits, label, tensor), expected)


def test_all_pixels_divides_by_the_ignored_ones_too() -> None:
    """mmsegmentation's: the mean over all pixels of a loss that is 0 where the label is ignored."""
    logits, label = logits_and_label()
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    plain = F.cross_entropy(logits, label, weights, ignore_index=-1, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, label, weights, all_pixels=True), plain.mean())
    pixel = torch.rand(label.shape, dtype=torch.float64)
    unweighted = F.cross_entropy(logits, label, ignore_index=-1, reduction="none")
    torch.testing.assert_close(
        weighted_cross_entropy(logits, label, pixel, 1, all_pixels=True), (pixel * unweighted).mean()
    )


def test_all_pixels_ignored_is_zero_not_nan() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = cross_entropy(logits, torch.full((1, 4, 4), -1))
    value.backward()
    assert float(value) == 0
    assert (logits.grad == 0).all()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits, label = logits_and_label()
    value = cross_entropy(logits.half(), label)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(cross_entropy(logits, label)), rel=1e-3)


def test_hard_pixels() -> None:
    losses = torch.tensor([0.01, 0.02, 1.5, 0.5, 3.0])  # probabilities .99 .98 .22 .61 .05
    assert hard_pixels(losses, 0.3, 1).tolist() == [False, False, True, False, True]
    assert hard_pixels(losses, 0.3, 3).tolist() == [False, False, True, True, True]
    assert hard_pixels(losses, 0.3, 99).all()


def test_ohem_is_the_mean_over_hard_pixels() -> None:
    logits, label = logits_and_label()
    each = F.cross_entropy(logits, label, reduction="none", ignore_index=-1)
    hard = each[(label != -1) & (each > -torch.log(torch.tensor(0.3)))]
    value = cross_entropy(logits, label, ohem_threshold=0.3, ohem_min_kept=1)
    torch.testing.assert_close(value, hard.mean())
    torch.testing.assert_close(cross_entropy(logits, label, ohem_threshold=0.3, ohem_min_kept=0), value)
    assert cross_entropy(logits, label, ohem_threshold=1e-9, ohem_min_kept=0) == each.max()  # one is kept


def test_balanced_weights() -> None:
    frequencies = torch.tensor([0.64, 0.32, 0.04, 0.0])
    weights = balanced_class_weights(frequencies)
    assert float(weights[2] / weights[0]) == pytest.approx(4)
    assert weights[3] == weights[2]  # absent: as the rarest
    assert float((weights * frequencies).sum()) == pytest.approx(1)
    assert (balanced_class_weights(torch.zeros(3)) == 1).all()


def test_class_weights_are_state() -> None:
    term = prepared(CrossEntropy(class_weights="balanced"))
    term.set_frequencies(torch.tensor([0.9, 0.09, 0.01]))
    copy = prepared(CrossEntropy(class_weights="balanced"))
    copy.load_state_dict(term.state_dict())
    assert (copy.class_weights == term.class_weights).all()
    assert copy.class_weights[2] > copy.class_weights[0]


@pytest.mark.parametrize("bad", [[1.0, 2.0], "median"])
def test_bad_class_weights(bad: object) -> None:
    with pytest.raises(ProtosegError, match="numbers"):
        prepared(CrossEntropy(class_weights=bad))  # type: ignore[arg-type]


def test_terms_on_a_prototype_head_reach_the_features() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(8, 4, num_prototypes=3)
    features, label = torch.randn(2, 8, 5, 6, requires_grad=True), torch.randint(0, 4, (2, 20, 24))
    output = head(features)
    grid = downsample_label(label, (5, 6), 4).flatten()
    clustering = head.memory.balance(output.similarities.own(grid), grid)
    batch = Step(head, Seen(output, label, 4, clustering))
    for term in (CrossEntropy(), PixelPrototypeContrast(), PixelPrototypeDistance()):
        (gradient,) = torch.autograd.grad(term(batch), features, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_auxiliary_uses_its_own_logits() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 8, 8))
    output = SegOutput(logits=logits, embeddings=logits, auxiliary=logits + 1 * torch.randn_like(logits))
    main, auxiliary = CrossEntropy(), AuxiliaryCrossEntropy()
    assert auxiliary(step(output, label)) != main(step(output, label))
    swapped = output._replace(logits=output.auxiliary)
    assert auxiliary(step(output, label)) == main(step(swapped, label))


def test_prototype_terms_need_prototypes() -> None:
    output = SegOutput(logits=torch.randn(1, 3, 2, 2), embeddings=torch.randn(1, 8, 2, 2))
    batch = step(output, torch.zeros(1, 8, 8, dtype=torch.int64))
    for term in (PixelPrototypeContrast(), PixelPrototypeDistance()):
        with pytest.raises(ProtosegError, match="head=prototype"):
            term(batch)
    with pytest.raises(ProtosegError, match="auxiliary head"):
        AuxiliaryCrossEntropy()(batch)


def test_downsampled_labels_are_cell_centres() -> None:
    label = torch.arange(8 * 10).view(1, 8, 10)
    grid = downsample_label(label, (2, 3), 4)  # 10 = 2.5 cells: the last centre lies outside
    assert grid[0].tolist() == [[22, 26, 29], [62, 66, 69]]


def test_class_255_of_a_wide_label_space() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 300, 2, 3)
    label = torch.full((1, 2, 3), 255)
    label[0, 0] = -1
    expected = F.cross_entropy(logits[0, :, 1].T, label[0, 1])
    torch.testing.assert_close(cross_entropy(logits, label), expected)
    torch.testing.assert_close(weighted_cross_entropy(logits, label, torch.full((1, 2, 3), 0.5), 1), expected / 2)


def test_the_rest_has_the_sum_of_its_probabilities() -> None:
    """Against a loop over pixels; an image that annotates all, and one whose rest is all, among them."""
    torch.manual_seed(0)
    logits = (8 * torch.randn(4, 5, 6, 7, dtype=torch.float64)).requires_grad_()
    label = torch.randint(-1, 5, (4, 6, 7))
    classes = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    pixels = (label == IGNORE_INDEX) & (torch.rand(4, 6, 7) < 0.6) & classes.any(1)[:, None, None]
    weights = torch.rand(5, dtype=torch.float64) + 0.1
    rest, total, count = Rest(pixels, classes), torch.zeros((), dtype=torch.float64), 0.0
    for b, y, x in itertools.product(range(4), range(6), range(7)):
        share, known = logits[b, :, y, x].softmax(0), int(label[b, y, x])
        if known >= 0:
            total, count = total - weights[known] * share[known].log(), count + float(weights[known])
        elif pixels[b, y, x]:
            total, count = total - share[classes[b]].sum().log(), count + 1
    loss = cross_entropy(logits, label, weights, rest=rest)
    torch.testing.assert_close(loss, total / count)
    (naive,), (ours,) = (torch.autograd.grad(value, logits, retain_graph=True) for value in (total / count, loss))
    torch.testing.assert_close(ours, naive)
    assert torch.isfinite(cross_entropy(logits.detach().half() * 900, label, rest=rest))
    plain = logits.detach().float()
    seen = Seen(SegOutput(plain, plain), label, 1, rest=rest)
    found = [CrossEntropy(ignore_rest=ignored)(Step(torch.nn.Identity(), seen)) for ignored in (True, False)]
    torch.testing.assert_close(found[0], cross_entropy(plain, label))
    torch.testing.assert_close(found[1], cross_entropy(plain, label, rest=rest))


@pytest.mark.parametrize("option", ["nothing", "rest", "parents", "label"])
def test_options_that_are_not_the_configs_are_refused_when_made(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        CrossEntropy(**{option: None})
