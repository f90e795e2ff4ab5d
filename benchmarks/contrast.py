"""Every pixel against every other one: in pieces, against all pairs at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional.contrast import pixel_to_pixel


class ContrastSetting(NamedTuple):
    """Sizes; the defaults are those of the released code of PGPC, with two images, and MiT-B5's 1024 channels."""

    batch: int = 2
    height: int = 65
    width: int = 65
    channels: int = 1024
    classes: int = 19

    def describe(self) -> str:
        return f"{self.batch} x {self.height} x {self.width} pixels, D={self.channels}, C={self.classes}"


def all_pairs(features: Tensor, label: Tensor) -> Tensor:
    """:func:`protoseg.functional.contrast.pixel_to_pixel` by its formula, with matrices of all pairs."""
    rows, ids = F.normalize(features, dim=1).permute(0, 2, 3, 1).flatten(0, 2), label.flatten()
    similarity = rows @ rows.T
    same = ids.unsqueeze(1) == ids
    positive = same & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    rivals = (similarity.exp() * ~same).sum(1, keepdim=True)
    losses = -torch.log(similarity.exp() / (similarity.exp() + rivals))
    return ((losses * positive).sum(1) / positive.sum(1).clamp_min(1)).mean()


def contrast_steps(setting: ContrastSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Loss and gradient, both ways by name, on the same numbers."""
    s, generator = setting, torch.Generator().manual_seed(0)
    features = torch.randn(s.batch, s.channels, s.height, s.width, generator=generator).to(device).requires_grad_()
    label = torch.randint(0, s.classes, (s.batch, s.height, s.width), generator=generator).to(device)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        value = loss(features, label)
        return value.detach(), torch.autograd.grad(value, features)[0]

    return {"in pieces": partial(step, pixel_to_pixel), "all pairs": partial(step, all_pairs)}
