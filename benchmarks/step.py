"""Cost of a whole training step: the prototype model against its softmax twin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from benchmarks.twins import learn_from
from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Term
from protoseg.models.decoders import FPNDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import Head, ParametricHead, PrototypeHead


class StepSetting(NamedTuple):
    """Sizes; the defaults are those of experiment=camvid_prototype. ``compiled=1`` adds both by ``torch.compile``."""

    batch: int = 8
    height: int = 240
    width: int = 320
    classes: int = 11
    prototypes: int = 10
    compiled: int = 0

    def describe(self) -> str:
        s = self
        return f"lite0 + FPN, {s.batch} x {s.height} x {s.width}, C={s.classes}, K={s.prototypes}"


def step_steps(setting: StepSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """The steps by head, the softmax twin first."""
    s, generator = setting, torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (s.batch, 3, s.height, s.width), dtype=torch.uint8, generator=generator).to(device)
    label = torch.randint(0, s.classes, (s.batch, s.height // 8, s.width // 8), generator=generator)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2).to(device)
    prototypes = [PixelPrototypeContrast(), PixelPrototypeDistance()]
    heads: dict[str, tuple[Callable[[int, int], Head], list[Term]]] = {
        "parametric": (ParametricHead, []),
        "prototype": (partial(PrototypeHead, num_prototypes=s.prototypes), prototypes),
    }
    steps: dict[str, Callable[[], object]] = {}
    for compiled, (name, (head, more)) in product(range(1 + bool(s.compiled)), heads.items()):
        torch.manual_seed(0)
        decoder = partial(FPNDecoder, pyramid_channels=128, segmentation_channels=64)
        model = Segmentor(TimmEncoder("tf_efficientnet_lite0"), decoder, head, s.classes)
        model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            name += " + compile"
            model.compile(dynamic=False)
        terms = [CrossEntropy(), *more]
        steps[name] = partial(_step, model.train(), terms, torch.optim.AdamW(model.parameters()), image, label)
    return steps


def _step(
    model: Segmentor, terms: list[Term], optimizer: torch.optim.Optimizer, image: torch.Tensor, label: torch.Tensor
) -> None:
    """Forward, assignment, losses, backward, and the updates of weights and prototypes."""
    optimizer.zero_grad()
    learn_from(model(image), model.head, terms, label, model.stride)
    optimizer.step()
