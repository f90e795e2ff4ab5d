"""FreeMatch's self-adaptive thresholds (Wang et al., ICLR 2023, arXiv 2205.07246) for the teacher's pseudo-labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from protoseg.distributed import all_reduce_, world_size
from protoseg.functional.precision import at_least_fp32
from protoseg.losses import Target
from protoseg.training import AdaptationModule
from protoseg.types import IGNORE_INDEX


class FreeMatchModule(AdaptationModule):
    """DACS whose pseudo-labels count from a confidence that each class has of its own, and that training raises.

    With the teacher's probabilities q of target pixels, averaged over steps at momentum m from 1 / C on:

        tau <- m tau + (1 - m) mean of max q          how sure the teacher is
        p_c <- m p_c + (1 - m) mean of q_c            … and of which classes
        tau_c = p_c / (max of p) * tau

    Args:
        momentum: m, 0.999 in the paper.
        options: of :class:`protoseg.training.AdaptationModule`. Prototypes follow pixels of its ``threshold`` besides.
    """

    confidence: Tensor
    probability: Tensor

    def __init__(self, *, momentum: float = 0.999, **options: Any) -> None:
        super().__init__(**options)
        classes = self.label_space.num_classes
        self.momentum = momentum
        self.register_buffer("confidence", torch.tensor(1 / classes))  # tau
        self.register_buffer("probability", torch.full((classes,), 1 / classes))  # p
        self._said: list[Tensor] = []  # of the micro-batches of this step

    def thresholds(self) -> Tensor:
        """tau_c, ``c``."""
        return self.probability / self.probability.max() * self.confidence

    @torch.no_grad()
    def ask_teacher(self, image: Tensor) -> Target:
        """What the teacher says of images ``b 3 H W``; labels below their class's threshold are ignored."""
        said = super().ask_teacher(image)
        q = at_least_fp32(said.teacher.logits).softmax(1)
        self._said.append(torch.cat([q.amax(1).mean().view(1), q.mean((0, 2, 3))]))
        known = said.label != IGNORE_INDEX
        sure = known & (said.confidence >= self.thresholds()[said.label.where(known, 0)])
        quality = all_reduce_(sure.float().mean()) / world_size()
        self.log("train/threshold", self.confidence)
        return replace(said, label=said.label.where(sure, IGNORE_INDEX), quality=quality)

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if not self._said:
            return  # the source alone
        mean = all_reduce_(torch.stack(self._said).mean(0)) / world_size()
        self.confidence.lerp_(mean[0], 1 - self.momentum)
        self.probability.lerp_(mean[1:], 1 - self.momentum)
        self._said = []
