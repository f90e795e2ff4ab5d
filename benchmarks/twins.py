"""Cost of one training step of the head alone: prototype against its softmax twin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Seen, Step, Term
from protoseg.nn import Head, ParametricHead, PrototypeHead
from protoseg.types import SegOutput


class TwinSetting(NamedTuple):
    """Sizes of the step; the defaults are those of experiment=camvid_prototype."""

    batch: int = 8
    height: int = 240
    width: int = 320
    stride: int = 4
    channels: int = 64
    classes: int = 11
    prototypes: int = 10

    def describe(self) -> str:
        return f"{self.batch} x {self.height} x {self.width}, C={self.classes}, K={self.prototypes}, D={self.channels}"


def learn_from(output: SegOutput, head: Head, terms: list[Term], label: Tensor, stride: int) -> None:
    """Assignment, losses, backward, and the update of the prototypes if the head has any."""
    memory = head.memory
    clustering = None
    if memory is not None:
        clustering, observation = memory.assign(output, label, stride)
        memory.observe_accumulated([observation])
    batch = Step(head, Seen(output, label, stride, clustering))
    torch.stack([term.weight * term(batch) for term in terms]).sum().backward()
    if memory is not None:
        memory.step()


def twin_steps(setting: TwinSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """The steps by head."""
    torch.manual_seed(0)
    s = setting
    heads: dict[str, tuple[Head, list[Term]]] = {
        "parametric": (ParametricHead(s.channels, s.classes), [CrossEntropy()]),
        "prototype": (
            PrototypeHead(s.channels, s.classes, s.prototypes),
            [CrossEntropy(), PixelPrototypeContrast(), PixelPrototypeDistance()],
        ),
    }
    grid = (-(-s.height // s.stride), -(-s.width // s.stride))
    features = torch.randn(s.batch, s.channels, *grid, device=device).to(memory_format=torch.channels_last)
    label = torch.randint(0, s.classes, (s.batch, s.height, s.width), device=device)
    for module, terms in heads.values():
        module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        nn.ModuleList(terms).to(device)

    def step(module: Head, terms: list[Term]) -> None:
        learn_from(module(features.detach().requires_grad_()), module, terms, label, s.stride)

    return {name: partial(step, module, terms) for name, (module, terms) in heads.items()}
