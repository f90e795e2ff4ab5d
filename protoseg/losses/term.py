"""What every loss term is given, and what every loss term is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from protoseg.functional.prototypes import Clustering
from protoseg.types import SegOutput


class LossInput(NamedTuple):
    """One training batch after the forward pass.

    Attributes:
        output: the model's output on its own grid.
        label: train ids at full resolution, ``b H W``.
        stride: pixels per cell of the model's grid.
        clustering: prototype of each grid pixel; None for heads without prototypes.
    """

    output: SegOutput
    label: Tensor
    stride: int
    clustering: Clustering | None = None


class LossTerm(nn.Module, ABC):
    """A scalar loss with the weight it has in the sum."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, batch: LossInput) -> Tensor:
        """The unweighted loss, a scalar in fp32 or better."""
