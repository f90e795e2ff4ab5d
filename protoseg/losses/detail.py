"""HRDA's additional loss on the detail crop alone."""

from torch import Tensor

from protoseg.losses.segmentation import CrossEntropy, weighted_cross_entropy
from protoseg.losses.term import Step, Term
from protoseg.types import ProtosegError, SegOutput


def on_detail(output: SegOutput, *maps: Tensor) -> list[Tensor]:
    """Logits of the detail crop, and of maps ``b H W`` of the whole image what lies under it.

    Raises ProtosegError: the model has no detail crop, or is not in training.
    """
    if output.detail is None:
        raise ProtosegError(
            "detail loss: expected a model with a detail crop, got none; set segmentor=hrda, or drop the term"
        )
    logits, (top, left, height, width) = output.detail
    return [logits, *(pixels[:, top : top + height, left : left + width] for pixels in maps)]


class DetailCrossEntropy(CrossEntropy):
    """Cross-entropy of the detail crop of labelled images (HRDA, arXiv 2204.13132, Sec. 3.3).

    In the paper its weight is lambda_d = 0.1, and that of the cross-entropy on the fused logits 1 - lambda_d.
    """

    def forward(self, step: Step) -> Tensor:
        logits, label = on_detail(step.labelled.output, step.labelled.label)
        return self.on_labels(logits, label, step.labelled.stride)


class MixedDetailCrossEntropy(Term):
    """The same on the mixed images with their pixel weights: 0.1 of it and 0.9 of the mixed cross-entropy."""

    needs = ("mixed",)
    uses_labelled_graph = False

    def __init__(self, weight: float = 1.0, all_pixels: bool = False) -> None:
        super().__init__(weight)
        self.all_pixels = all_pixels

    def forward(self, step: Step) -> Tensor:
        assert step.mixed is not None
        logits, label, weight = on_detail(step.mixed.output, step.mixed.label, step.mixed.weight)
        return weighted_cross_entropy(logits, label, weight, step.mixed.stride, all_pixels=self.all_pixels)
