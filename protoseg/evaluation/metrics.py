"""Segmentation metrics from one confusion matrix: rows are the truth, columns the prediction."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric

from protoseg.functional.hierarchy import ancestors
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError


class Scores(TypedDict):
    """The numbers of one evaluation, all in 0 to 1 and NaN where there is nothing to count."""

    mIoU: float  # mean over the classes that the data label and that occur in truth or prediction
    pixel_accuracy: float  # share of all counted pixels that are right
    mean_accuracy: float  # mean over the classes that occur in the truth
    fw_IoU: float  # IoU weighted by the classes' true pixels
    IoU: Tensor  # fp64 ``c``; NaN for a class neither in the truth nor in the prediction, or that the data do not label
    accuracy: Tensor  # fp64 ``c``: recall; NaN for a class not in the truth
    confusion: Tensor  # int64 ``c c``, rows are the truth


def confusion_matrix(pred: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (true class, predicted class) in one pass, int64 ``c c``; rows are the truth.

    Of int64 class ids of one shape, whatever it is; labels may be ``IGNORE_INDEX``, and are left out. Raises
    ProtosegError: shapes differ, or an id lies outside the classes.
    """
    if pred.shape != label.shape:
        text = "confusion matrix: expected predictions (class ids, not logits) and labels of one shape"
        raise ProtosegError(f"{text}, got {tuple(pred.shape)} and {tuple(label.shape)}")
    pred, label = pred.long(), label.long()
    counted = label != IGNORE_INDEX
    known = (label >= 0) & (label < num_classes) & (pred >= 0) & (pred < num_classes)
    ignored_cell = num_classes * num_classes
    cell = (label * num_classes + pred).where(known, ignored_cell + 1).where(counted, ignored_cell)
    counts = torch.bincount(cell.flatten(), minlength=ignored_cell + 1)
    # An unknown id makes the histogram one cell longer: seen from its shape, so the check waits for no device.
    if len(counts) > ignored_cell + 1:
        ids = [sorted(set(x[counted & ~known].unique().tolist()) - {*range(num_classes)}) for x in (label, pred)]
        text = f"confusion matrix: expected ids 0 to {num_classes - 1} (ignored labels: {IGNORE_INDEX})"
        got = f"labels {ids[0]} and predictions {ids[1]}"
        raise ProtosegError(f"{text}, got {got}; check that the model and the data have this label space")
    return counts[:ignored_cell].view(num_classes, num_classes)


def scores(confusion: Tensor, unlabelled: Sequence[int] = (), parents: Sequence[int] = ()) -> Scores:
    """All metrics of a confusion matrix ``c c``; ``unlabelled``: classes of which the data can hold no pixel."""
    confusion = confusion.cpu()  # not every device has fp64
    counts = confusion.double()
    hit, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    leaves = len(counts) - len({*parents} - {-1})  # what is no group
    if parents:  # ``LabelSpace``'s: pixels are of groups, too, which are in no mean; those labelled so of no class
        under = ancestors(parents).T
        found, known = under @ counts.T, 1 - under.T + torch.eye(len(parents))
        hit, true, predicted = (found @ under.T).diagonal(), under @ true, (found * known).sum(1)
        held = under[:, [leaf for leaf in range(leaves) if leaf not in unlabelled]].sum(1) + true
        unlabelled = (held == 0).nonzero().flatten().tolist()  # groups of such classes alone, too
    iou, accuracy = hit / (true + predicted - hit), hit / true
    iou[list(unlabelled)] = torch.nan
    hit, true = hit[:leaves], true[:leaves]
    return Scores(
        mIoU=iou[:leaves].nanmean().item(),
        pixel_accuracy=(hit.sum() / true.sum()).item(),
        mean_accuracy=accuracy[:leaves].nanmean().item(),
        fw_IoU=(true / true.sum() * iou[:leaves].nan_to_num(0.0)).sum().item(),
        IoU=iou,
        accuracy=accuracy,
        confusion=confusion,
    )


def subset_means(iou: Tensor, label_space: LabelSpace, subsets: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Mean of the IoU ``c`` over named choices of the classes, ``{"mIoU_NAME": …}``: SYNTHIA's 16 of Cityscapes' 19.

    And over the nodes of each level of a hierarchy, at the top ``mIoU_level_1``, above that of its classes. Raises
    ProtosegError: a class that the label space lacks, or a choice of none.
    """
    ids = {name: label_space.ids(chosen, f"subsets.{name}") for name, chosen in subsets.items()}
    depth, leaves = ancestors(label_space.parents).sum(1).tolist(), label_space.leaves
    for level in range(1, int(max(depth, default=1))):  # a class without a group on a level stands for itself
        ids[f"level_{level}"] = [i for i, d in enumerate(depth) if d == level or (d < level and i < leaves)]
    return {f"mIoU_{name}": iou[chosen].nanmean().item() for name, chosen in ids.items()}


class SegmentationMetrics(Metric):
    """Confusion matrix summed over batches and ranks, on which its ``Scores`` do not depend."""

    full_state_update = False
    confusion: Tensor

    def __init__(self, label_space: LabelSpace) -> None:
        super().__init__()
        c, self.parents = label_space.num_classes, label_space.parents
        self.add_state("confusion", torch.zeros(c, c, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, label: Tensor) -> None:
        """Count a batch: int64 class ids ``b h w`` (any shape), and labels of the same shape."""
        self.confusion += confusion_matrix(pred, label, len(self.confusion))

    def compute(self) -> Scores:
        """The ``Scores`` over everything counted, on all ranks."""
        return scores(self.confusion, parents=self.parents)
