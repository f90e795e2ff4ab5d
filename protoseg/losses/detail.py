"""HRDA's additional loss on the detail crop alone."""

from torch import Tensor

from protoseg.losses.segmentation import CrossEntropy, weighted_cross_entropy_on_grid
from protoseg.losses.term import Step, Term
from protoseg.types import Detail, ProtosegError, SegOutput


def detail_of(output: SegOutput) -> Detail:
    """The output's detail crop.

    Raises:
        ProtosegError: the model has none, or is not in training.
    """
    if output.detail is None:
        raise ProtosegError(
            "detail loss: expected a model with a detail crop, got none; set segmentor=hrda, or drop the term"
        )
    return output.detail


def crop_to_box(pixels: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The pixels of ``b H W`` inside ``box`` (top, left, height, width)."""
    top, left, height, width = box
    return pixels[:, top : top + height, left : left + width]


def weighted_detail_cross_entropy(
    detail: Detail, label: Tensor, weight: Tensor, stride: int, all_pixels: bool
) -> Tensor:
    """Cross-entropy of the detail crop on labels and pixel weights of the whole image, both ``b H W``."""
    label, weight = crop_to_box(label, detail.box), crop_to_box(weight, detail.box)
    return weighted_cross_entropy_on_grid(detail.logits, label, weight, stride, all_pixels=all_pixels)


class DetailCrossEntropy(CrossEntropy):
    """Cross-entropy of the detail crop of labelled images (HRDA, arXiv 2204.13132, Sec. 3.3).

    In the paper its weight is lambda_d = 0.1, and that of the cross-entropy on the fused logits 1 - lambda_d.
    """

    def forward(self, step: Step) -> Tensor:
        detail = detail_of(step.labelled.output)
        return self.on_labels(detail.logits, crop_to_box(step.labelled.label, detail.box), step.labelled.stride)


class MixedDetailCrossEntropy(Term):
    """The same on the mixed images with their pixel weights: 0.1 of it and 0.9 of the mixed cross-entropy."""

    needs = ("mixed",)
    uses_labelled_graph = False

    def __init__(self, weight: float = 1.0, all_pixels: bool = False) -> None:
        super().__init__(weight)
        self.all_pixels = all_pixels

    def forward(self, step: Step) -> Tensor:
        assert step.mixed is not None
        mixed, detail = step.mixed, detail_of(step.mixed.output)
        return weighted_detail_cross_entropy(detail, mixed.label, mixed.weight, mixed.stride, self.all_pixels)
