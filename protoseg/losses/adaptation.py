"""The terms of DACS and DAFormer: weighted cross-entropy on mixed images, and the feature distance."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from protoseg.distributed import mean_over_ranks
from protoseg.functional.precision import at_least_fp32
from protoseg.functional.resize import majority_label
from protoseg.losses.segmentation import CrossEntropy, weighted_cross_entropy
from protoseg.losses.term import Step, Term
from protoseg.types import IGNORE_INDEX, LabelSpace


class MixedCrossEntropy(Term):
    """Cross-entropy on the mixed images: pasted pixels count 1, target pixels as much as the pseudo-labels' quality.

    DACS (Tranheden et al., arXiv 2007.08702), Sec. 3.2; weights of ``Mixed.weight``. ``class_weights`` (None in the
    paper) are a further factor for every pixel; they and ``all_pixels`` as of :class:`CrossEntropy`.
    """

    needs = ("mixed",)
    uses_labelled_graph = False

    def __init__(
        self, weight: float = 1.0, class_weights: str | Sequence[float] | None = None, all_pixels: bool = False
    ) -> None:
        super().__init__(weight)
        self.class_weights, self.all_pixels = class_weights, all_pixels

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        self.of_class = CrossEntropy(class_weights=self.class_weights)
        self.of_class.prepare(model, label_space)

    def forward(self, step: Step) -> Tensor:
        assert step.mixed is not None
        mixed, weights = step.mixed, self.of_class.class_weights
        assert weights is not None
        of_class = weights[mixed.label.where(mixed.label != IGNORE_INDEX, 0)]
        how = (mixed.stride, mixed.output.align_corners, self.all_pixels)
        return weighted_cross_entropy(mixed.output.logits, mixed.label, mixed.weight * of_class, *how)


class FeatureDistance(Term):
    """Keeps the encoder's features of things near those it had at the start, when it knew ImageNet.

    DAFormer (arXiv 2111.14887, Sec. 3.3): mean, over the cells of the coarsest map that one thing class covers by at
    least ``min_ratio``, of the Euclidean distance between the features of the source image by the student and by a
    frozen copy of its initial encoder.

    Args:
        weight: 0.005 in the paper.
        min_ratio: 0.75 in the paper.
        classes: names of the classes that count; the label space's things by default.

    Raises ProtosegError: classes that the label space lacks, or no things at all.
    """

    things: Tensor

    def __init__(self, weight: float = 0.005, min_ratio: float = 0.75, classes: Sequence[str] | None = None) -> None:
        super().__init__(weight)
        self.min_ratio, self.classes = min_ratio, classes

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        chosen = label_space.things if self.classes is None else self.classes
        things = label_space.ids(chosen, "feature distance, classes (else things: [NAME, …] of classes.yaml)")
        self.reference = deepcopy(model.encoder).requires_grad_(False).eval()
        # One more entry, never counted, for cells without a class.
        is_thing = torch.zeros(label_space.num_classes + 1, dtype=torch.bool)
        is_thing[things] = True
        self.register_buffer("things", is_thing, persistent=False)

    def train(self, mode: bool = True) -> FeatureDistance:
        super().train(mode)
        if hasattr(self, "reference"):
            self.reference.eval()
        return self

    def forward(self, step: Step) -> Tensor:
        model: Any = step.model
        seen = step.labelled
        assert seen.output.features is not None
        assert seen.image is not None
        with torch.no_grad():
            theirs = model.encoder_maps(seen.image, self.reference)[-1]
        distance = at_least_fp32(seen.output.features[-1] - theirs).norm(dim=1)
        classes = len(self.things) - 1
        cells = majority_label(seen.label, model.feature_strides[-1], self.min_ratio, classes)
        counted = self.things[cells.where(cells != IGNORE_INDEX, classes)]
        return mean_over_ranks((distance * counted).sum(), counted.sum())
