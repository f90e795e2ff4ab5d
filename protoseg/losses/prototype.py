"""The two terms that shape the embedding space around the prototypes (ProtoSeg, Eq. 11 and 12)."""

from torch import Tensor

from protoseg.functional.prototypes import Clustering, pixel_prototype_contrast, pixel_prototype_distance
from protoseg.losses.term import Step, Term
from protoseg.types import ProtosegError, Similarities


def _prototypes_of(step: Step, term: str) -> tuple[Similarities, Clustering]:
    seen = step.labelled
    if seen.output.similarities is None or seen.clustering is None:
        text = f"loss {term}: expected a head with prototypes, got one without"
        raise ProtosegError(f"{text}; use head=prototype, or loss=parametric")
    return seen.output.similarities, seen.clustering


class PixelPrototypeContrast(Term):
    """PPC: draws a pixel to its own prototype and away from all others; in the paper weight 0.01, temperature 0.1."""

    def __init__(self, weight: float = 0.01, temperature: float = 0.1) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        similarities, clustering = _prototypes_of(step, "ppc")
        return pixel_prototype_contrast(similarities, clustering.target, self.temperature)


class PixelPrototypeDistance(Term):
    """PPD: makes the pixels of one prototype compact; weight 0.001 in the paper."""

    def __init__(self, weight: float = 0.001) -> None:
        super().__init__(weight)

    def forward(self, step: Step) -> Tensor:
        similarities, clustering = _prototypes_of(step, "ppd")
        return pixel_prototype_distance(similarities, clustering.target)
