"""Sinkhorn over all classes at once against one class at a time, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protoseg.functional.prototypes import sinkhorn
from protoseg.types import ProtosegError


def naive_plan(similarity: Tensor, epsilon: float, rounds: int) -> Tensor:
    """One class, as in the paper: alternate equal shares per prototype and unit mass per pixel."""
    plan = torch.exp((similarity - 1) / epsilon)
    for _ in range(rounds):
        plan = plan / plan.sum(0, keepdim=True) / plan.shape[1]
        plan = plan / plan.sum(1, keepdim=True)
    return plan


@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_one_class_at_a_time(k: int) -> None:
    torch.manual_seed(0)
    similarity, label = torch.rand(200, k, dtype=torch.float64) * 2 - 1, torch.randint(0, 5, (200,))
    label[label == 3] = 4  # class 3 is absent
    plan = sinkhorn(similarity, label, 7)
    for c in label.unique():
        torch.testing.assert_close(plan[label == c], naive_plan(similarity[label == c], 0.05, 3), atol=1e-12, rtol=0)


def test_ignored_pixels_have_no_mass_and_no_influence() -> None:
    torch.manual_seed(0)
    similarity, label = torch.rand(50, 4, dtype=torch.float64), torch.randint(0, 3, (50,))
    valid = torch.rand(50) > 0.3
    plan = sinkhorn(similarity, label.where(valid, -1), 3, valid)
    assert (plan[~valid] == 0).all()
    torch.testing.assert_close(plan[valid], sinkhorn(similarity[valid], label[valid], 3), atol=1e-12, rtol=0)


def test_balances_the_prototypes() -> None:
    torch.manual_seed(0)
    similarity = torch.rand(600, 3) * 0.1 + torch.tensor([0.5, 0.0, 0.0])  # the first one is nearest to all
    label = torch.zeros(600, dtype=torch.int64)
    share = sinkhorn(similarity, label, 1, rounds=50).sum(0) / 600
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    assert (similarity.argmax(1) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_cosine_one(dtype: torch.dtype) -> None:
    similarity = torch.ones(8, 3, dtype=dtype)
    similarity[0] = -1
    plan = sinkhorn(similarity, torch.zeros(8, dtype=torch.int64), 1)
    assert plan.dtype == torch.float32
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(1), torch.ones(8))


def test_no_valid_pixel_gives_zeros() -> None:
    plan = sinkhorn(torch.rand(5, 2), torch.full((5,), -1), 3, torch.zeros(5, dtype=torch.bool))
    assert (plan == 0).all()


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.003])
def test_a_sharp_plan_is_that_of_fp64(epsilon: float) -> None:
    torch.manual_seed(0)
    similarity = torch.rand(400, 10) * 0.6 - 0.3
    plan = sinkhorn(similarity, torch.zeros(400, dtype=torch.int64), 1, epsilon=epsilon)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan, naive_plan(similarity.double(), epsilon, 3).float(), atol=1e-4, rtol=0)
    assert (plan.sum(0) > 20).all()
    with pytest.raises(ProtosegError, match=r"expected an epsilon of 0\.003 or more, got 0\.002"):
        sinkhorn(similarity, torch.zeros(400, dtype=torch.int64), 1, epsilon=0.002)
