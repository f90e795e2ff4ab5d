"""Balanced assignment of pixels to prototypes: all classes at once, against one class after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from protoseg.functional.prototypes import sinkhorn

EPSILON, ROUNDS = 0.05, 3


class SinkhornSetting(NamedTuple):
    """Sizes; the defaults are those of ``head``."""

    pixels: int = 16384
    classes: int = 19
    prototypes: int = 10

    def describe(self) -> str:
        return f"N={self.pixels}, C={self.classes}, K={self.prototypes}"


def plan_of_one_class(similarity: Tensor) -> Tensor:
    """The balanced plan of the pixels of one class, ``n k``."""
    plan = torch.exp((similarity - 1) / EPSILON)
    for _ in range(ROUNDS):
        plan = plan / plan.sum(0, keepdim=True)
        plan = plan / plan.sum(1, keepdim=True)
    return plan


def class_by_class(similarity: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The plan of :func:`protoseg.functional.prototypes.sinkhorn`, with a loop."""
    plan = torch.zeros_like(similarity)
    for c in range(num_classes):
        mine = label == c
        plan[mine] = plan_of_one_class(similarity[mine])
    return plan


def sinkhorn_steps(setting: SinkhornSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Both ways by name, on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(setting.pixels, setting.prototypes, generator=generator).to(device)
    label = torch.randint(0, setting.classes, (setting.pixels,), generator=generator).to(device)
    return {
        "all classes at once": partial(sinkhorn, similarity, label, setting.classes, None, EPSILON, ROUNDS),
        "class by class": partial(class_by_class, similarity, label, setting.classes),
    }
