"""Loss terms: a :class:`LossInput` or :class:`AdaptationInput` to a scalar; the module sums them with their weights."""

from protoseg.losses.adaptation import FeatureDistance, MixedCrossEntropy
from protoseg.losses.detail import DetailCrossEntropy, MixedDetailCrossEntropy
from protoseg.losses.masked import MaskedImageConsistency
from protoseg.losses.prototype import PixelPrototypeContrast, PixelPrototypeDistance
from protoseg.losses.segmentation import AuxiliaryCrossEntropy, CrossEntropy
from protoseg.losses.term import AdaptationInput, AdaptationTerm, LossInput, LossTerm, PseudoLabels

__all__ = [
    "AdaptationInput",
    "AdaptationTerm",
    "AuxiliaryCrossEntropy",
    "CrossEntropy",
    "DetailCrossEntropy",
    "FeatureDistance",
    "LossInput",
    "LossTerm",
    "MaskedImageConsistency",
    "MixedCrossEntropy",
    "MixedDetailCrossEntropy",
    "PixelPrototypeContrast",
    "PixelPrototypeDistance",
    "PseudoLabels",
]
