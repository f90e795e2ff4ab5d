"""CutMix for segmentation (French et al., BMVC 2020, arXiv 1906.01916): a rectangle, not classes, is pasted."""

from __future__ import annotations

import torch
from torch import Tensor

from protoseg.training.moves import ClassMix
from protoseg.types import ProtosegError


class CutMix(ClassMix):
    """Pastes a rectangle of ``share`` of the labelled image's area, of random shape and place; otherwise as ClassMix.

    Args:
        share: in (0, 1); one half in the paper.
        options: of ClassMix: jitter, jitter_probability, blur.
    """

    def __init__(self, share: float = 0.5, **options: float | bool) -> None:
        super().__init__(**options)
        if not 0 < share < 1:
            raise ProtosegError(f"method.mix.share: expected a number in (0, 1), got {share}")
        self.share = share

    def mask(self, label: Tensor, num_classes: int) -> Tensor:
        """The rectangle of each image, bool ``b H W``."""
        b, height, width = label.shape
        draw = torch.rand(3, b, 1, 1, device=label.device)
        tall = self.share ** draw[0]  # share of the height, the rest is of the width: from share to 1, log-uniform
        inside = []
        for side, part, place, axis in ((height, tall, draw[1], 1), (width, self.share / tall, draw[2], 2)):
            start, at = place * (1 - part) * side, torch.arange(side, device=label.device)
            at = at.unsqueeze(2 - axis).unsqueeze(0) + 0.5
            inside.append((at >= start) & (at < start + part * side))
        return inside[0] & inside[1]
