"""Loss terms: the record of a training step, :class:`Step`, to a scalar; the module sums them with their weights."""

from protoseg.losses.adaptation import (
    DetailCrossEntropy,
    FeatureDistance,
    MaskedImageConsistency,
    MixedCrossEntropy,
    MixedDetailCrossEntropy,
    StrongViews,
)
from protoseg.losses.segmentation import (
    AuxiliaryCrossEntropy,
    CrossEntropy,
    LogitsLoss,
    PixelPrototypeContrast,
    PixelPrototypeDistance,
    RegionMutualInformation,
)
from protoseg.losses.term import Mixed, Seen, Step, Target, Term
