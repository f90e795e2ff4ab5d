"""Loss terms: each takes a :class:`LossInput` and returns a scalar; the module sums them with their weights."""

from protoseg.losses.prototype import PixelPrototypeContrast, PixelPrototypeDistance
from protoseg.losses.segmentation import AuxiliaryCrossEntropy, CrossEntropy
from protoseg.losses.term import LossInput, LossTerm

__all__ = [
    "AuxiliaryCrossEntropy",
    "CrossEntropy",
    "LossInput",
    "LossTerm",
    "PixelPrototypeContrast",
    "PixelPrototypeDistance",
]
