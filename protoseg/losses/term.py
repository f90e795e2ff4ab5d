"""What every loss term is, and the record of a training step that it is given."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from protoseg.functional.prototypes import Clustering
from protoseg.nn import Observation, PrototypeMemory
from protoseg.types import LabelSpace, Rest, SegOutput


@dataclass(frozen=True)
class Seen:
    """Images with labels that the model under training has seen."""

    output: SegOutput  # on the model's own grid
    label: Tensor  # train ids at full resolution, int64 ``b H W``
    stride: int  # pixels per cell of the model's grid
    clustering: Clustering | None = None  # prototype of each grid pixel; None for heads without prototypes
    image: Tensor | None = None  # what the model saw, ``b 3 H W``; None where no term asks for it
    rest: Rest | None = None  # pixels of classes that their image does not annotate, at full resolution


@dataclass(frozen=True, kw_only=True)
class Mixed(Seen):
    """Mixed images: parts of labelled, or other target, images pasted on target images, with the labels of both.

    Pixels that are not pasted show the target image of the same index at the same place.
    """

    pasted: Tensor  # pixels that come from another image, bool ``b H W``
    weight: Tensor  # of every pixel in the cross-entropy, fp32 ``b H W``


@dataclass(frozen=True)
class Target:
    """Unlabelled images and what the teacher says of them (with ``unweighted`` without the class weights)."""

    image: Tensor  # as the teacher saw them, uint8 ``b 3 H W``
    label: Tensor  # its likeliest class, int64 ``b H W``; ``IGNORE_INDEX`` in rows that are left out
    confidence: Tensor  # the probability it gives that class, fp32 ``b H W``
    quality: Tensor  # share of pixels (of all ranks) with a confidence of at least the threshold, a scalar in [0, 1]
    teacher: SegOutput  # its output on its grid (no gradient)


@dataclass(frozen=True)
class Step:
    """A training step after its forward passes. Parts that a method does not have are None; no term needs those."""

    # The ``Segmentor`` that is trained. A term with a forward pass of its own takes ``perturbed``, which moves no
    # running statistics: they are what it is judged by.
    model: Any
    labelled: Seen  # its output on labelled images: of adaptation, the source's
    mixed: Mixed = None  # type: ignore[assignment]  # its output on mixed images
    target: Target = None  # type: ignore[assignment]  # the unlabelled images


class Term(nn.Module, ABC):
    """A scalar loss with the weight that it has in the sum.

    Its life: made from its YAML; :meth:`prepare`-d once, before any weights are loaded; :meth:`forward` in every step;
    :meth:`after_optimizer_step`. A new one is a subclass and a YAML under ``loss``, ``contrast`` or a method's terms.
    """

    needs: ClassVar[tuple[str, ...]] = ("labelled",)  # parts of a step that it works on; a method must have them
    # Whether it has a gradient through ``labelled.output``, whose graph is then kept where the labelled images go
    # backward first; of terms under ``contrast`` and a method's ``terms`` only.
    uses_labelled_graph: ClassVar[bool] = True
    memory: PrototypeMemory | None  # the prototypes that the term keeps, None if it has none of its own

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight, self.memory = weight, None
        self.observations: list[Observation] = []  # pixels of the last ``forward`` for a memory
        self.statistics: dict[str, Tensor] = {}  # of the last ``forward``, for the logs: scalars, or ``c``

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        """Make whatever depends on the sizes of the model, a ``Segmentor``, or on the classes."""

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The unweighted loss, a scalar in fp32 or better."""

    def after_optimizer_step(self) -> None:
        """Move what the term keeps, once for every optimizer step that was made."""
