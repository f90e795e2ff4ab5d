"""What every loss term is given, and what every loss term is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from protoseg.functional.prototypes import Clustering
from protoseg.nn.prototype_memory import Observation, PrototypeMemory
from protoseg.types import LabelSpace, SegOutput


class LossInput(NamedTuple):
    """One training batch after the forward pass.

    Attributes:
        output: the model's output on its own grid.
        label: train ids at full resolution, ``b H W``.
        stride: pixels per cell of the model's grid.
        clustering: prototype of each grid pixel; None for heads without prototypes.
        image: what the model saw, ``b 3 H W``; None where no term asks for it.
        model: the model itself, for terms that look at the image on their own.
    """

    output: SegOutput
    label: Tensor
    stride: int
    clustering: Clustering | None = None
    image: Tensor | None = None
    model: nn.Module | None = None


class LossTerm(nn.Module, ABC):
    """A scalar loss with the weight it has in the sum. Built by the config, then given its sizes by :meth:`prepare`."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def prepare(self, model: nn.Module, label_space: LabelSpace, alpha: float) -> None:
        """Make whatever depends on the sizes of the model or on the classes; called before any weights are loaded.

        Args:
            model: what is trained, a ``Segmentor``.
            label_space: the classes.
            alpha: the largest momentum of the teacher, for terms with an averaged part of their own.
        """

    @abstractmethod
    def forward(self, batch: LossInput) -> Tensor:
        """The unweighted loss, a scalar in fp32 or better."""


class PseudoLabels(NamedTuple):
    """What the teacher says of the target images, at full resolution.

    Attributes:
        label: its likeliest class, int64 ``b H W``; ``IGNORE_INDEX`` in rows that are left out.
        confidence: the probability it gives that class, fp32 ``b H W``.
        quality: share of pixels (of all ranks) with a confidence of at least the threshold, a scalar in [0, 1].
    """

    label: Tensor
    confidence: Tensor
    quality: Tensor


class AdaptationInput(NamedTuple):
    """One step of domain adaptation after the forward passes.

    Attributes:
        student: the model under training (for terms with a forward pass of their own).
        source: its output on the source images, with their labels.
        mixed: its output on the mixed images, with their labels: the source's where pasted, else the teacher's.
        pasted: pixels of the mixed images that come from the source image, bool ``b H W``. The others show the target
            image of the same index at the same place, so that ``pseudo`` and ``teacher`` describe them.
        weight: of every mixed pixel in the cross-entropy, fp32 ``b H W``.
        target: the target images as the teacher saw them, uint8 ``b 3 H W``.
        pseudo: what the teacher says of them.
        teacher: the teacher's own output on them (its grid, no gradient).
    """

    student: nn.Module
    source: LossInput
    mixed: LossInput
    pasted: Tensor
    weight: Tensor
    target: Tensor
    pseudo: PseudoLabels
    teacher: SegOutput


class AdaptationTerm(LossTerm):
    """A loss term of domain adaptation.

    Attributes:
        uses_source_graph: whether the loss has a gradient through ``source.output``, whose graph must then be kept
            when the source terms go backward first.
        memory: the prototypes that the term keeps, None if it has none of its own.
        observations: pixels of the last ``forward`` for that memory.
        statistics: scalars of the last ``forward`` for the logs, by name.
    """

    uses_source_graph = True
    memory: PrototypeMemory | None

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.memory = None
        self.observations: list[Observation] = []
        self.statistics: dict[str, Tensor] = {}

    def step(self) -> None:
        """Called once after every optimizer step, also after one that fp16's overflow made void."""

    @abstractmethod
    def forward(self, batch: AdaptationInput) -> Tensor:  # type: ignore[override]
        """The unweighted loss, a scalar in fp32 or better."""
