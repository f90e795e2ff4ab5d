"""Masked image consistency: the student must tell from the context what the teacher sees in the hidden patches."""

from typing import Any

from torch import Tensor

from protoseg.functional.masking import mask_image, random_patch_mask
from protoseg.functional.mixing import check_colours, strong_transform
from protoseg.losses.detail import on_detail
from protoseg.losses.segmentation import weighted_cross_entropy
from protoseg.losses.term import Step, Term
from protoseg.types import SegOutput


class MaskedImageConsistency(Term):
    """Cross-entropy of the student on masked target images against the pseudo-labels (MIC, arXiv 2212.01322, Eq. 8).

    The images get colour jitter and blur before the patches are hidden, as in the released code. Every pixel weighs
    as much as the pseudo-labels' quality; pixels whose pseudo-label is ``IGNORE_INDEX`` do not count.

    Args:
        block_size: side of a patch in pixels, 64 in the paper.
        ratio: share of hidden patches, 0.7 in the paper.
        detail_weight: of the detail crop's cross-entropy, the fused logits having the rest; models with a detail crop
            (HRDA) only.
        all_pixels: as of :class:`protoseg.losses.CrossEntropy`.
        colours: of :func:`protoseg.functional.mixing.strong_transform`.

    Raises ProtosegError: a ratio outside [0, 1] or a block size below 1.
    """

    needs = ("target",)
    uses_labelled_graph = False

    def __init__(
        self,
        weight: float = 1.0,
        block_size: int = 64,
        ratio: float = 0.7,
        detail_weight: float = 0.1,
        all_pixels: bool = False,
        **colours: Any,
    ) -> None:
        super().__init__(weight)
        random_patch_mask(0, (1, 1), block_size, ratio)  # refuses wrong settings now, not at the first step
        self.block_size, self.ratio, self.detail_weight = block_size, ratio, detail_weight
        check_colours("method.terms.masked", **colours)
        self.colours, self.all_pixels = colours, all_pixels

    def forward(self, step: Step) -> Tensor:
        assert step.target is not None
        student: Any = step.model
        image, label = step.target.image, step.target.label
        height, width = image.shape[-2:]
        visible = random_patch_mask(len(image), (height, width), self.block_size, self.ratio, image.device)
        output: SegOutput = student(mask_image(strong_transform(image, **self.colours), visible, student.mean))
        weight = step.target.quality.expand(label.shape)
        how = (student.stride, output.align_corners, self.all_pixels)
        loss = weighted_cross_entropy(output.logits, label, weight, *how)
        if output.detail is None:
            return loss
        logits, label, weight = on_detail(output, label, weight)
        detail = weighted_cross_entropy(logits, label, weight, student.stride, all_pixels=self.all_pixels)
        return (1 - self.detail_weight) * loss + self.detail_weight * detail
