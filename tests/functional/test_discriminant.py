"""Linear discriminant analysis: Gaussian classes whose answer is known, sums over parts, and what the prior does."""

from __future__ import annotations

import pytest
import torch

from protoseg.functional.discriminant import (
    COVERAGE,
    Moments,
    Statistics,
    class_calibration,
    moments,
    posterior_mean,
    set_thresholds,
    statistics,
)
from protoseg.types import ProtosegError

MEANS = torch.tensor([[0.0, 0, 0, 0], [4, 0, 0, 0], [0, 4, 0, 0], [4, 4, 0, 0]])
PLAIN = (torch.ones(()), torch.zeros(4))
MIX = torch.tensor([[2.0, 0, 0, 0], [0.8, 0.5, 0, 0], [0, 0, 1, 0], [0, 0.3, 0, 3]])


def image(seed: int, classes: int = 4, between: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of Gaussian classes with covariance ``MIX MIX^T``; each class's mean is shifted in each image."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (400,), generator=draw)
    shift = between * torch.randn(classes, 4, generator=draw)
    return (MEANS[label] + shift[label] + torch.randn(400, 4, generator=draw)) @ MIX.T, label


def total(count: int, **given: float) -> Moments:
    found = [moments(*image(seed, **given), 4) for seed in range(count)]  # type: ignore[arg-type]
    whole = found[0]
    for part in found[1:]:
        whole = whole.plus(part)
    return whole


def test_sums_over_parts_are_those_of_the_whole() -> None:
    x, label = image(0)
    label[:30] = -1
    parts = moments(x[:150], label[:150], 4).plus(moments(x[150:], label[150:], 4))
    whole = moments(x, label, 4)
    for name in ("counts", "sums", "products"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    y, known = x[30:].double(), label[30:]
    torch.testing.assert_close(whole.products, sum(row[:, None] * row for row in y), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.sums[2], y[known == 2].sum(0), rtol=1e-10, atol=1e-10)


def test_scores_are_those_of_the_known_gaussians() -> None:
    weight, bias = statistics(total(200), PLAIN, shrinkage=0.0).linear()
    inverse = torch.linalg.inv(MIX @ MIX.T)
    x, _ = image(999)
    scores = x @ weight.T + bias
    expected = torch.stack([-0.5 * ((x - mean) @ inverse * (x - mean)).sum(1) for mean in MEANS @ MIX.T])
    difference = lambda s: s - s[:, :1]  # noqa: E731 what all classes share does not count
    torch.testing.assert_close(difference(scores), difference(expected.T), rtol=0.03, atol=0.3)


def test_one_image_is_believed_less_than_many_and_where_images_differ_least() -> None:
    known = statistics(total(30, between=1.0), PLAIN)
    centre = known.means.double().mean(0)
    there = centre + 3
    one = posterior_mean(known, there[None], torch.tensor([50])) - centre
    many = posterior_mean(known, there.repeat(50, 1), torch.full((50,), 50)) - centre
    assert (one > 0).all()
    assert (one < many).all()
    assert (many < 3).all()
    sure = known._replace(images=torch.zeros(4))
    torch.testing.assert_close(posterior_mean(sure, there[None], torch.tensor([50])), there.float())


def test_a_constant_channel_and_a_class_without_pixels_do_no_harm() -> None:
    found = [image(seed, 3) for seed in range(8)]
    added = [moments(torch.cat([x, torch.full((400, 1), 7.0)], 1), label, 4) for x, label in found]
    known: Statistics = statistics(Moments(*map(sum, zip(*added, strict=True))), PLAIN)  # type: ignore[arg-type]
    assert known.classes.tolist() == [0, 1, 2]
    weight, bias = known.linear()
    x, label = image(50, 3)
    predicted = (torch.cat([x, torch.full((400, 1), 7.0)], 1) @ weight.T + bias).argmax(1)
    assert (predicted == label).float().mean() > 0.9


def test_one_class_has_no_rival() -> None:
    with pytest.raises(ProtosegError, match="two classes or more"):
        statistics(moments(*image(0, 1), 4), PLAIN)


def test_calibration_finds_the_slope_and_the_bias_of_each_class() -> None:
    draw = torch.Generator().manual_seed(0)
    log_odds = 3 * torch.rand(40_000, generator=draw)
    predicted = torch.randint(2, (40_000,), generator=draw)
    truth = torch.tensor([1.0, -2.0])
    chance = (0.7 * log_odds + truth[predicted]).sigmoid()
    slope, bias = class_calibration(log_odds, predicted, torch.rand(40_000, generator=draw) < chance, 3)
    assert slope.item() == pytest.approx(0.7, abs=0.05)
    torch.testing.assert_close(bias[:2], truth, atol=0.1, rtol=0)
    assert bias[2] == pytest.approx(bias[:2].mean().item())  # never predicted
    dark = (torch.arange(40_000) % 2).float()  # of every second one's image
    chance = (0.7 * log_odds - 1.5 * dark + truth[predicted]).sigmoid()
    right = torch.rand(40_000, generator=draw) < chance
    slopes, bias = class_calibration(torch.stack([log_odds, dark], 1), predicted, right, 3)
    torch.testing.assert_close(slopes, torch.tensor([0.7, -1.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(bias[:2], truth, atol=0.1, rtol=0)
    _, bias = class_calibration(log_odds, predicted, predicted == 0, 2)
    assert bias.isfinite().all()
    assert bias[0] > 5 > -5 > bias[1]


def test_label_sets_hold_the_class_of_new_pixels_of_every_class() -> None:
    draw = torch.Generator().manual_seed(0)
    label = torch.multinomial(torch.tensor([0.7, 0.25, 0.05]), 40_000, replacement=True, generator=draw)
    probability = torch.rand(40_000, generator=draw) ** (1 + label)  # the rarer, the less sure
    thresholds = set_thresholds(probability[:20_000], label[:20_000], 4)
    for c in range(3):
        new = probability[20_000:][label[20_000:] == c]
        assert (new >= thresholds[c]).float().mean().item() == pytest.approx(COVERAGE, abs=0.035)
    assert thresholds[0] > thresholds[1] > thresholds[2] > 0
    assert thresholds[3] == 0  # nothing is known of it: it is in every set
    assert set_thresholds(torch.tensor([0.5] * 8), torch.zeros(8, dtype=torch.int64), 1).item() == 0  # too few
    assert set_thresholds(
        torch.tensor([0.2, *[0.5] * 8]), torch.zeros(9, dtype=torch.int64), 1
    ).item() == pytest.approx(0.2)


def test_a_taught_class_has_the_mean_bias_and_is_in_every_label_set() -> None:
    known = statistics(total(30), PLAIN)._replace(bias=torch.tensor([0.0, 1.0, 2.0, 3.0]), sets=torch.full((4,), 0.2))
    more = known.with_taught([known.means[0]], [4], 5).checked(5)
    assert more.classes.tolist() == [*known.classes.tolist(), 4]
    assert more.taught.tolist() == [False] * 4 + [True]
    torch.testing.assert_close(more.bias, torch.tensor([0.0, 1.0, 2.0, 3.0, 1.5]))
    assert more.sets is not None
    torch.testing.assert_close(more.sets, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.0]))
