"""Cost of a whole training step on a ViT-S: from kept maps, with a frozen encoder, with LoRA, with all that learns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.twins import learn_from
from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Term
from protoseg.models.decoders import FCNDecoder, FPNDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeHead


class TuningSetting(NamedTuple):
    """Sizes; ``pyramid`` is the width of the ViT's pyramid and of the FPN behind it, 0 for the head on its one map."""

    batch: int = 4
    height: int = 224
    width: int = 224
    classes: int = 11
    rank: int = 8
    pyramid: int = 0
    depth: int = 12

    def describe(self) -> str:
        s, decoder = self, f"FPN of {self.pyramid}" if self.pyramid else "no decoder"
        return f"ViT-S/16, {decoder}, {s.batch} x {s.height} x {s.width}, C={s.classes}, K=10, LoRA of rank {s.rank}"


def tuning_steps(setting: TuningSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """The steps, the cheapest first; each with a network of its own, of random weights."""
    s = setting
    image = torch.randint(0, 256, (s.batch, 3, s.height, s.width), dtype=torch.uint8, device=device)
    label = torch.randint(0, s.classes, (s.batch, s.height // 8, s.width // 8), device=device)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    options: dict[str, dict[str, Any]] = {
        "kept maps": {"freeze": True},
        "frozen": {"freeze": True},
        "LoRA": {"lora_rank": s.rank},
        "full": {},
    }
    steps: dict[str, Callable[[], object]] = {}
    for name, how in options.items():
        torch.manual_seed(0)
        encoder = TimmEncoder("vit_small_patch16_dinov3", pyramid_channels=s.pyramid or None, depth=s.depth, **how)
        fpn = partial(FPNDecoder, pyramid_channels=s.pyramid, segmentation_channels=64)
        decoder = fpn if s.pyramid else partial(FCNDecoder, num_convs=0, dropout=0.0)
        model = Segmentor(encoder, decoder, partial(PrototypeHead, num_prototypes=10), s.classes)
        model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        see: Callable[[], Any] = partial(model, image)
        if name == "kept maps":
            with torch.no_grad():
                maps = [each.half() for each in model.frozen_maps(image)]
            see = partial(model.from_frozen, maps, (s.height, s.width))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        steps[name] = partial(_step, model, see, optimizer, label)
    return steps


def _step(model: Segmentor, see: Callable[[], Any], optimizer: torch.optim.Optimizer, label: Tensor) -> None:
    """Forward, assignment, losses, backward, and the updates of weights and prototypes."""
    terms: list[Term] = [CrossEntropy(), PixelPrototypeContrast(), PixelPrototypeDistance()]
    optimizer.zero_grad()
    learn_from(see(), model.head, terms, label, model.stride)
    optimizer.step()
