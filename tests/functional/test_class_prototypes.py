"""The prototypes of one class: fixed point of the clustering, its limits, and turning away from other classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional.prototypes import class_prototypes, sinkhorn, spread_out
from protoseg.types import ProtosegError


def bundle(directions: Tensor, count: int, noise: float, seed: int = 0) -> Tensor:
    """``count`` unit vectors around each of some directions."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(
        directions.repeat_interleave(count, 0)
        + noise * torch.randn(len(directions) * count, directions.shape[1], generator=generator),
        dim=1,
    )


def test_finds_directions_that_lie_apart() -> None:
    directions = torch.eye(16)[:5]
    found = class_prototypes(bundle(directions, 40, 0.05), 5)
    nearest = (found.prototypes @ directions.T).max(0)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3, 4]
    assert nearest.values.min() > 0.999
    assert found.counts.tolist() == [40] * 5
    assert found.distinct == 5


def test_is_a_fixed_point_of_the_online_clustering() -> None:
    pixels = bundle(torch.eye(8)[:3], 50, 0.3)
    found = class_prototypes(pixels, 4, seed=3)
    member = sinkhorn(pixels @ found.prototypes.T, torch.zeros(150, dtype=torch.int64), 1).argmax(1)
    assert torch.bincount(member, minlength=4).tolist() == found.counts.tolist()
    for j in range(4):
        torch.testing.assert_close(found.prototypes[j], F.normalize(pixels[member == j].sum(0), dim=0))


def test_same_seed_same_bits() -> None:
    pixels = bundle(torch.eye(8)[:3], 50, 0.5)
    assert torch.equal(class_prototypes(pixels, 4, seed=1).prototypes, class_prototypes(pixels, 4, seed=1).prototypes)


@pytest.mark.parametrize("copies", [1, 6])
def test_fewer_pixels_than_prototypes(copies: int) -> None:
    pixels = torch.eye(4)[:3].repeat(copies, 1)
    found = class_prototypes(pixels, 10)
    assert found.distinct == 3
    assert found.prototypes.shape == (10, 4)
    torch.testing.assert_close(found.prototypes[:3], found.prototypes[3:6])
    assert sorted(found.prototypes.argmax(1).tolist()) == sorted([0, 1, 2] * 3 + [int(found.prototypes[0].argmax())])
    torch.testing.assert_close(found.prototypes.norm(dim=1), torch.ones(10))


def test_no_pixel() -> None:
    with pytest.raises(ProtosegError, match="at least one pixel"):
        class_prototypes(torch.zeros(0, 4), 3)


def test_the_start_is_spread_out() -> None:
    pixels = bundle(torch.eye(16)[:6], 200, 0.01)
    for seed in range(5):
        assert len(set(spread_out(pixels, 6, seed).argmax(1).tolist())) == 6


def sharing(strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of a class, pixels of others and the prototypes of these; all have much of one direction in them."""
    axes = torch.eye(12)
    own, other = axes[:1] + strength * axes[10], axes[1:4] + strength * axes[10]
    return bundle(own, 300, 0.15), bundle(other, 300, 0.15, seed=1), F.normalize(axes[1:4], dim=1)
