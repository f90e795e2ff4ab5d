"""Before the first step: whether the masks have something to learn from, and to judge by."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from protoseg import distributed
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces.tables import ignored_in
from protoseg.data.statistics import count_pixels, image_size, kept_statistics, spread
from protoseg.types import LabelSpace, ProtosegError

_SAMPLE = 64
_MOSTLY_IGNORED = 0.95


def check_classes(space: LabelSpace) -> None:
    """Raise ProtosegError unless there are classes to tell apart."""
    if space.num_classes == 1:
        raise ProtosegError(
            f"classes: expected at least two to tell apart, got {space.classes[0]!r} alone: add a background class for "
            "what is void now (in classes.yaml, its colour or id under classes instead of void)"
        )


def check_training_labels(dataset: SegmentationDataset) -> None:
    """Look at a few masks, spread over the split; warns where nearly all is ignored, or one class is all there is.

    The kept class counts are used where there are some (``statistics.class_statistics``). Where none of the few masks
    has a labelled pixel, the others are read until one has.

    Raises:
        ProtosegError: no mask has a labelled pixel, there is but one class, or a mask is bad.
    """
    check_classes(dataset.label_space)
    kept, chosen = kept_statistics(dataset), spread(len(dataset), _SAMPLE)
    counts = count_pixels(dataset, indices=chosen) if kept is None else kept.counts[chosen]
    if not counts.any() and not _any_labelled(dataset, None if kept is None else kept.counts):
        raise ProtosegError(
            f"split {dataset.split!r}: expected labelled pixels to train on, got {len(dataset)} masks in which every "
            f"pixel is ignored ({dataset.samples[0][1]}, …): check the masks, and the ids or colours of the classes "
            f"({', '.join(dataset.label_space.classes[:5])}, …)"
        )
    if distributed.rank() != 0:
        return
    total = sum(np.prod(image_size(dataset.samples[index][0])) for index in chosen)
    ignored, present = 1 - counts.sum() / total, np.flatnonzero(counts.any(axis=0))
    looked = f"{len(chosen)} of the {len(dataset)} training masks"
    if ignored >= _MOSTLY_IGNORED:
        warnings.warn(
            f"{ignored:.1%} of the pixels of {looked} are ignored: little is learned from them; check the ids or "
            "colours of the classes",
            stacklevel=2,
        )
    if len(present) == 1:
        warnings.warn(
            f"{looked} hold one class alone, {dataset.label_space.classes[present[0]]!r}, of "
            f"{dataset.label_space.num_classes}: check the ids or colours of the classes",
            stacklevel=2,
        )


def check_validation_labels(dataset: SegmentationDataset) -> None:
    """Raise ProtosegError unless some pixel can be judged by; masks are read until one is found that has such."""
    if not _any_labelled(dataset, None):
        raise ProtosegError(
            f"split {dataset.split!r}: expected labelled pixels to validate on, got {len(dataset)} images without any: "
            "choose another data.val_split, or train without validation: trainer.limit_val_batches=0"
        )


def _any_labelled(dataset: SegmentationDataset, counts: NDArray[np.int64] | None) -> bool:
    if counts is not None:
        return bool(counts.any())
    masked = (index for index, (_, mask) in enumerate(dataset.samples) if mask is not None)
    labels = map(dataset.read_label, masked)
    return any((label != ignored_in(label)).any() for label in labels)
