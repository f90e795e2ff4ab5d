"""Losses of segmentation_models_pytorch through ``LogitsLoss``, and weights of cross-entropy, against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from segmentation_models_pytorch.losses import FocalLoss, SoftCrossEntropyLoss
from torch import Tensor, nn

from protoseg.losses import LogitsLoss, RegionMutualInformation, Seen, Step, segmentation
from protoseg.losses.segmentation import cross_entropy, missed_share, near_boundary
from protoseg.run.config import CONFIG_DIR
from protoseg.types import ProtosegError, SegOutput


def case() -> tuple[Tensor, Tensor]:
    """Logits and labels of two images and four classes; the last class is absent, many pixels are ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=generator)
    label = torch.randint(0, 3, (2, 6, 5), generator=generator)
    label[0, :4] = -1
    return logits.requires_grad_(), label


def labelled(logits: Tensor, label: Tensor) -> list[tuple[list[float], int]]:
    """Probabilities and label of each pixel that has one."""
    rows = logits.detach().softmax(1).permute(0, 2, 3, 1).flatten(0, 2).tolist()
    return [(row, y) for row, y in zip(rows, label.flatten().tolist(), strict=True) if y != -1]


def shipped(name: str) -> LogitsLoss:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        (term,) = compose("train", [f"loss={name}"]).loss.values()
    return instantiate(term)


def value_of(term: LogitsLoss, logits: Tensor, label: Tensor) -> Tensor:
    return term(Step(nn.Identity(), Seen(SegOutput(logits=logits, embeddings=logits), label, 1)))


def naive_dice(logits: Tensor, label: Tensor) -> float:
    losses = []
    for c in range(logits.shape[1]):
        both = sum(p[c] for p, y in labelled(logits, label) if y == c)
        each = sum(p[c] + (y == c) for p, y in labelled(logits, label))
        present = any(y == c for _, y in labelled(logits, label))
        losses.append(1 - 2 * both / each if present else 0)
    return sum(losses) / len(losses)


def naive_lovasz(logits: Tensor, label: Tensor) -> float:
    """Mean over the classes present of the error sorted, times how much the Jaccard loss grows with each."""
    losses = []
    for c in {y for _, y in labelled(logits, label)}:
        errors = sorted(((abs((y == c) - p[c]), y == c) for p, y in labelled(logits, label)), reverse=True)
        size, before, loss = sum(is_c for _, is_c in errors), 0.0, 0.0
        for i in range(len(errors)):
            wrong = errors[: i + 1]
            missed = sum(is_c for _, is_c in wrong)
            now = 1 - (size - missed) / (size + len(wrong) - missed)
            loss, before = loss + errors[i][0] * (now - before), now
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("name", "naive"), [("dice", naive_dice), ("lovasz_softmax", naive_lovasz)])
def test_shipped_losses_are_their_naive_loops(name: str, naive: object) -> None:
    logits, label = case()
    value = value_of(shipped(name), logits, label)
    assert value.item() == pytest.approx(naive(logits, label), rel=1e-5)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[0, :, :4] == 0).all()
    assert (gradient[1].abs().sum(0) > 0).all()
    other = logits.detach().clone()
    other[0, :, :4] = torch.randn(4, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(value_of(shipped(name), other, label), value.detach())


@pytest.mark.parametrize("name", ["dice", "lovasz_softmax"])
def test_nothing_labelled_is_zero_with_a_gradient_of_zero(name: str) -> None:
    logits, label = case()
    value = value_of(shipped(name), logits, torch.full_like(label, -1))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.ndim == 0
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", ["dice", "lovasz_softmax"])
def test_sure_and_right_is_zero_and_half_precision_is_summed_in_fp32(name: str) -> None:
    _, label = case()
    right = 50 * F.one_hot(label.where(label != -1, 0), 4).permute(0, 3, 1, 2).half()
    with torch.autocast("cpu", torch.bfloat16):
        value = value_of(shipped(name), right, label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0, abs=1e-5)


def naive_rmi(logits: Tensor, label: Tensor) -> float:
    """Cell by cell and region by region, with an inverse and a determinant."""
    total, (b, c, height, width) = 0.0, logits.shape
    probability, side, pool = logits.detach().softmax(1), segmentation.SIDE, segmentation.POOL
    for i in range(b):
        for j in range(c):
            means = []
            for top in range(0, height, pool):
                for left in range(0, width, pool):
                    cell = [
                        (y, x)
                        for y in range(top, min(top + pool, height))
                        for x in range(left, min(left + pool, width))
                    ]
                    seen = [(y, x) for y, x in cell if label[i, y, x] != -1]
                    p = sum(float(probability[i, j, y, x]) for y, x in seen) / len(cell)
                    t = sum(int(label[i, y, x] == j) for y, x in seen) / len(cell)
                    means.append((t, p))
            grid = np.array(means).reshape(-(-height // pool), -(-width // pool), 2)
            rows, columns = grid.shape[0] - side + 1, grid.shape[1] - side + 1
            found = [grid[y : y + side, x : x + side].reshape(-1, 2) for y in range(rows) for x in range(columns)]
            t, p = np.stack(found, 2).transpose(1, 0, 2)
            noise, cov = segmentation.NOISE * np.eye(side**2), lambda u, v: np.cov(u, v, bias=True)[: len(u), len(u) :]
            m = cov(t, t) - cov(t, p) @ np.linalg.inv(cov(p, p) + noise) @ cov(p, t) + noise
            total += 0.5 * (np.log(np.linalg.det(m)) - np.log(np.linalg.det(noise))) / side**2
    return total / b


def large_case() -> tuple[Tensor, Tensor]:
    """Two images of 22 x 27 with blocks of three classes out of four, and many ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 4, 5), generator=generator).repeat_interleave(6, 1).repeat_interleave(6, 2)
    label = label[:, :22, :27].clone()
    label[0, :7] = -1
    logits = torch.randn(2, 4, 22, 27, dtype=torch.float64, generator=generator)
    return (logits + 2 * F.one_hot(label.clamp_min(0), 4).movedim(3, 1)).requires_grad_(), label


def test_region_mutual_information_is_its_naive_loop() -> None:
    logits, label = large_case()
    assert RegionMutualInformation()(logits, label).item() == pytest.approx(naive_rmi(logits, label), rel=1e-9)
    value = value_of(shipped("rmi"), logits, label)
    assert value.dtype == torch.float32  # whose covariances are exact enough
    assert value.item() == pytest.approx(naive_rmi(logits, label), rel=1e-3)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[0, :, :7] == 0).all()
    assert (gradient[1].abs().sum(0) > 0).all()


def test_region_mutual_information_in_half_precision_of_the_right_and_of_nothing() -> None:
    _, label = large_case()
    right = 50 * F.one_hot(label.clamp_min(0), 4).movedim(3, 1).half()
    wrong = torch.zeros_like(right)
    with torch.autocast("cpu", torch.bfloat16):
        value, worse = (value_of(shipped("rmi"), logits, label) for logits in (right, wrong))
    assert value.dtype == torch.float32
    assert 0 < value.item() < 3 * 0.5 * math.log(2) < worse.item()
    logits, label = large_case()
    nothing = RegionMutualInformation()(logits, torch.full_like(label, -1))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == pytest.approx(0, abs=1e-12)
    assert (gradient == 0).all()


def test_region_mutual_information_of_a_training_that_diverged_is_not_finite() -> None:
    """So that the training ends with its own message, of which loss it is, and not with the library's."""
    logits, label = large_case()
    for value in (math.nan, math.inf):
        diverged = logits.detach().clone()
        diverged[0, 1, 20, 20] = value
        assert not RegionMutualInformation()(diverged, label).isfinite()


def test_logits_are_upsampled_to_the_label() -> None:
    label = case()[1]
    coarse = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    term = shipped("dice")
    whole = F.interpolate(coarse, (6, 6), mode="bilinear")[..., :5]
    step = Step(nn.Identity(), Seen(SegOutput(logits=coarse, embeddings=coarse), label, 2))
    torch.testing.assert_close(term(step), value_of(term, whole, label))


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    logits, label = case()
    with pytest.raises(ProtosegError, match=r"^loss: expected a scalar of CrossEntropyLoss, got \(2, 6, 5\)$"):
        value_of(LogitsLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=-1)), logits, label)


def test_why_two_of_the_library_are_not_shipped() -> None:
    """Its focal loss is that of one sigmoid a class; its label smoothing takes the mean over ignored pixels, too."""
    logits, label = case()
    focal = FocalLoss("multiclass", ignore_index=-1)
    assert focal(logits + 3, label).item() > 1.1 * focal(logits, label).item()  # of softmax it would be the same
    smoothed = SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=-1)(logits, label)
    share = (label != -1).double().mean()
    assert smoothed.item() == pytest.approx((share * cross_entropy(logits, label, label_smoothing=0.1)).item())


def test_focal_loss_is_its_naive_loop() -> None:
    logits, label = case()
    pixels = labelled(logits, label)
    for gamma in (0.5, 2.0):
        naive = sum(-((1 - p[y]) ** gamma) * math.log(p[y]) for p, y in pixels) / len(pixels)
        value = cross_entropy(logits, label, focal_gamma=gamma)
        assert value.item() == pytest.approx(naive)
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.isfinite().all()
        assert torch.autograd.gradcheck(lambda x, g=gamma: cross_entropy(x, label, focal_gamma=g), logits)


def test_label_smoothing_is_its_naive_loop() -> None:
    logits, label = case()
    pixels = labelled(logits, label)
    naive = sum(-0.9 * math.log(p[y]) - sum(0.1 / 4 * math.log(q) for q in p) for p, y in pixels) / len(pixels)
    assert cross_entropy(logits, label, label_smoothing=0.1).item() == pytest.approx(naive)


def test_hard_pixels_are_found_by_probability_whatever_is_smoothed() -> None:
    logits, label = case()
    kept = [(p, y) for p, y in labelled(logits, label) if p[y] < 0.3]
    naive = sum(-0.9 * math.log(p[y]) - sum(0.1 / 4 * math.log(q) for q in p) for p, y in kept) / len(kept)
    value = cross_entropy(logits, label, label_smoothing=0.1, ohem_threshold=0.3, ohem_min_kept=1)
    assert value.item() == pytest.approx(naive)


def test_recall_loss_is_its_naive_loop() -> None:
    logits, label = case()
    pixels = labelled(logits, label)
    missed = []
    for c in range(4):
        of_class = [p for p, y in pixels if y == c]
        missed.append(sum(p.index(max(p)) != c for p in of_class) / max(1, len(of_class)))
    assert missed_share(logits, label).tolist() == pytest.approx(missed)
    assert 0 < missed[0] < 1
    assert missed[3] == 0
    naive = sum(-missed[y] * math.log(p[y]) for p, y in pixels) / len(pixels)
    assert cross_entropy(logits, label, recall=True).item() == pytest.approx(naive)
    nothing = cross_entropy(logits, torch.full_like(label, -1), recall=True, focal_gamma=2.0, boundary=[5, 1])
    assert nothing.item() == 0


def test_recall_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, label = case()
    whole, of_rank = missed_share(logits, label), []
    monkeypatch.setattr(segmentation, "all_reduce_", lambda counts: of_rank.append(counts) or counts)
    for rank in range(2):
        missed_share(logits[rank : rank + 1], label[rank : rank + 1])
    missed, total = of_rank[0] + of_rank[1]
    torch.testing.assert_close(missed / total.clamp_min(1), whole)


def test_boundary_weights_are_their_naive_loop() -> None:
    logits, label = case()
    label[1] = 2
    label[1, 3:, 4] = 0
    label[1, 0, 0] = -1  # no class, so no boundary with its neighbours
    for reach in (1, 2):
        near = near_boundary(label, reach)
        for b, i, j in [(b, i, j) for b in range(2) for i in range(6) for j in range(5) if label[b, i, j] != -1]:
            window = label[b, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1].unique().tolist()
            assert bool(near[b, i, j]) == (len({*window} - {-1}) > 1)
        weight = torch.where(near, 5.0, 1.0)[label != -1]
        each = F.cross_entropy(logits, label, ignore_index=-1, reduction="none")[label != -1]
        value = cross_entropy(logits, label, boundary=[5, reach])
        torch.testing.assert_close(value, (weight * each).sum() / weight.sum())
