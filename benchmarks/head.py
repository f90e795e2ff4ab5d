"""The prototype core, from unit embeddings to losses, gradient and moved prototypes, in several ways.

``floor``: the two matrix products that no implementation can do without (cosines, and their gradient for the
embeddings), as torch computes them; ``oneDNN``: the same by the library that this package takes on a CPU. ``fused``:
this package. ``loop``: the algorithm as the paper describes it and as public code is wont to run it: class by class,
with the cosines computed once for the class scores and once for the contrast. ``released``, where a file is given: the
public code itself (``benchmarks.released``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.released import released_head, released_step
from benchmarks.sinkhorn import EPSILON, ROUNDS, plan_of_one_class
from protoseg.functional.precision import times_table
from protoseg.functional.prototypes import (
    cluster,
    pixel_prototype_contrast,
    pixel_prototype_distance,
    prototype_sums,
    update_prototypes,
)
from protoseg.functional.similarity import similarities
from protoseg.types import IGNORE_INDEX

TEMPERATURE, MOMENTUM = 0.1, 0.999
WEIGHT_CONTRAST, WEIGHT_DISTANCE = 0.01, 0.001


class HeadSetting(NamedTuple):
    """Sizes; the defaults are HRNet-W48's 720 channels on Cityscapes' 19 classes."""

    pixels: int = 16384
    classes: int = 19
    prototypes: int = 10
    channels: int = 720

    def describe(self) -> str:
        return f"N={self.pixels}, C={self.classes}, K={self.prototypes}, D={self.channels}"


class Core(NamedTuple):
    """What a step works on: unit embeddings ``n d``, prototypes ``c k d`` and labels ``n``."""

    embeddings: Tensor
    prototypes: Tensor
    label: Tensor


def make_core(setting: HeadSetting, device: torch.device) -> Core:
    """Random unit vectors; labels of all classes, and one pixel in twenty without."""
    generator = torch.Generator().manual_seed(0)
    n, c, k, d = setting
    embeddings = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    prototypes = F.normalize(torch.randn(c, k, d, generator=generator), dim=2)
    label = torch.randint(0, c, (n,), generator=generator)
    label[torch.rand(n, generator=generator) < 0.05] = IGNORE_INDEX
    return Core(embeddings.to(device).requires_grad_(), prototypes.to(device), label.to(device))


def products_step(core: Core, gradient: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The two products alone, by ``product(rows, table) = rows @ table.T``; ``gradient``: any matrix ``n c*k``."""
    table = core.prototypes.flatten(0, 1)
    with torch.no_grad():
        product(core.embeddings, table)
        product(gradient, table.T)


def plain_product(rows: Tensor, table: Tensor) -> Tensor:
    """As torch computes it."""
    return rows @ table.T


def fused_step(core: Core) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the embeddings, and prototypes after the update."""
    c, k, _ = core.prototypes.shape
    cosines = similarities(core.embeddings, core.prototypes)
    target = cluster(cosines.own(core.label), core.label, c, epsilon=EPSILON, rounds=ROUNDS).target
    loss = (
        F.cross_entropy(cosines.scores / TEMPERATURE, core.label, ignore_index=IGNORE_INDEX)
        + WEIGHT_CONTRAST * pixel_prototype_contrast(cosines, target, TEMPERATURE)
        + WEIGHT_DISTANCE * pixel_prototype_distance(cosines, target)
    )
    (gradient,) = torch.autograd.grad(loss, core.embeddings)
    with torch.no_grad():
        member = target.where(cosines.scores.argmax(1) == core.label, -1)
        sums, counts = prototype_sums(core.embeddings.detach(), member, c * k)
        moved = update_prototypes(core.prototypes.flatten(0, 1), sums, counts, MOMENTUM)
    return loss.detach(), gradient, moved.view_as(core.prototypes)


def loop_step(core: Core) -> tuple[Tensor, Tensor, Tensor]:
    """The same by plain formulas, one class after the other."""
    embeddings, prototypes, label = core
    similarity = torch.einsum("nd,ckd->nkc", embeddings, prototypes)
    scores = similarity.amax(1)
    cosines = embeddings @ prototypes.flatten(0, 1).T
    target, moved = _cluster_by_class(core, similarity.detach(), scores.argmax(1) == label)
    labelled = target >= 0
    assigned = cosines[labelled].gather(1, target[labelled].unsqueeze(1))
    loss = (
        F.cross_entropy(scores / TEMPERATURE, label, ignore_index=IGNORE_INDEX)
        + WEIGHT_CONTRAST * F.cross_entropy(cosines / TEMPERATURE, target, ignore_index=-1)
        + WEIGHT_DISTANCE * (1 - assigned).square().mean()
    )
    (gradient,) = torch.autograd.grad(loss, embeddings)
    return loss.detach(), gradient, moved


@torch.no_grad()
def _cluster_by_class(core: Core, similarity: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    embeddings, prototypes, label = core
    k = prototypes.shape[1]
    target, moved = torch.full_like(label, -1), prototypes.clone()
    for c in range(len(prototypes)):
        mine = label == c
        plan = plan_of_one_class(similarity[..., c][mine])
        if len(plan) == 0:
            continue
        chosen = plan.argmax(1)
        target[mine] = c * k + chosen
        used = correct[mine]
        members = F.one_hot(chosen, k).to(embeddings.dtype) * used.unsqueeze(1)
        sums = members.T @ (embeddings[mine] * used.unsqueeze(1))
        seen = members.sum(0) > 0
        step = MOMENTUM * moved[c] + (1 - MOMENTUM) * F.normalize(sums, dim=1)
        moved[c] = F.normalize(step, dim=1).where(seen.unsqueeze(1), moved[c])
    return target, moved


def head_steps(
    setting: HeadSetting, device: torch.device, against: Path | None = None
) -> dict[str, Callable[[], object]]:
    """The ways by name, on the same numbers; with the module of the released code in the file ``against``."""
    core = make_core(setting, device)
    gradient = torch.randn(setting.pixels, setting.classes * setting.prototypes, device=device)
    onednn = {"oneDNN": partial(products_step, core, gradient, times_table)} if device.type == "cpu" else {}
    released = {}
    if against is not None:
        head = released_head(against, core.prototypes)
        released = {"released": partial(released_step, head, core.embeddings, core.label)}
    return {
        "floor": partial(products_step, core, gradient, plain_product),
        **onednn,
        "fused": partial(fused_step, core),
        "loop": partial(loop_step, core),
        **released,
    }
