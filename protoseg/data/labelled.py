"""Before the first step: whether the masks have something to learn from, and to judge by."""

import warnings

import numpy as np
from numpy.typing import NDArray

from protoseg import distributed
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import ignored_in
from protoseg.data.statistics import class_statistics, count_pixels, image_size, kept_statistics, spread
from protoseg.types import LabelSpace, ProtosegError

_SAMPLE, _COUNTED = 64, 1000  # masks looked at, and masks that are all counted where these lack a class
_MOSTLY_IGNORED = 0.95


def check_training_labels(dataset: SegmentationDataset) -> None:
    """Look at a few masks, spread over the split, and warn as ``label_notes``; class counts that were kept are used.

    Where the few masks lack a class, the others are counted too, unless they are many; where none of them has a
    labelled pixel, the others are read until one has. Raises ProtosegError: no mask has a labelled pixel, there is but
    one class, or a mask is bad.
    """
    space = dataset.label_space
    if space.num_classes == 1:
        raise ProtosegError(
            f"classes: expected at least two to tell apart, got {space.classes[0]!r} alone: add a background class for "
            "what is void now (in classes.yaml, its colour or id under classes instead of void)"
        )
    kept, chosen = kept_statistics(dataset), spread(len(dataset), _SAMPLE)
    counts = count_pixels(dataset, chosen) if kept is None else kept.counts[chosen]
    if not (counts.any() or (_any_labelled(dataset) if kept is None else kept.counts.any())):
        raise nothing_labelled(dataset)
    if distributed.rank() != 0:
        return
    total = sum(int(np.prod(image_size(dataset.samples[index][0]))) for index in chosen)
    if kept is None and not counts.any(axis=0).all() and len(chosen) < len(dataset) <= _COUNTED:
        kept = class_statistics(dataset)
    whole = kept is not None or len(chosen) == len(dataset)
    pixels, ignored = (counts if kept is None else kept.counts).sum(axis=0), 1 - counts.sum() / total
    looked = f"the {len(dataset)} training masks" if whole else f"{len(chosen)} of the {len(dataset)} training masks"
    for note in label_notes(space, pixels, ignored, looked, whole):
        warnings.warn(note, stacklevel=2)


def nothing_labelled(dataset: SegmentationDataset) -> ProtosegError:
    """The error of a split in which every pixel is ignored."""
    return ProtosegError(
        f"split {dataset.split!r}: expected labelled pixels, got {len(dataset)} masks in which every "
        f"pixel is ignored ({dataset.samples[0][1]}, …): check the masks, and the ids or colours of the classes "
        f"({', '.join(dataset.label_space.classes[:5])}, …)"
    )


def label_notes(
    space: LabelSpace, pixels: NDArray[np.int64], ignored: float, looked: str, whole: bool = True
) -> list[str]:
    """What is odd about labels: nearly all ignored, one class alone, and, of the ``whole``, classes without a pixel.

    Of the pixels of each class, ``c``, and the share of ignored ones in the masks ``looked`` at.
    """
    notes, present, missing = [], np.flatnonzero(pixels), [space.classes[i] for i in np.flatnonzero(pixels == 0)]
    if ignored >= _MOSTLY_IGNORED:
        notes.append(f"{ignored:.1%} of the pixels of {looked} are ignored: little is learned from them; check")
    if len(present) == 1:
        notes.append(f"{looked} hold one class alone, {space.classes[present[0]]!r}, of {space.num_classes}: check")
    elif missing and whole:
        names = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        notes.append(f"{looked} hold no pixel of {names}: check")
    return [f"{note} the ids or colours of the classes" for note in notes]


def split_notes(title: str, dataset: SegmentationDataset, pixels: NDArray[np.int64], ignored: float) -> list[str]:
    """Lines for ``check`` and ``info``: how the masks of a split are read, and what is odd (see ``label_notes``)."""
    looked = f"the {sum(mask is not None for _, mask in dataset.samples)} masks of {title}"
    notes = label_notes(dataset.label_space, pixels, ignored, looked) if pixels.any() else []
    reading = [f"{title}: masks are read as: {dataset.mask_reading}"] if dataset.mask_reading else []
    return [*reading, *(f"note: {note}" for note in notes)]


def check_validation_labels(dataset: SegmentationDataset) -> None:
    """Raise ProtosegError unless some pixel can be judged by; masks are read until one is found that has such."""
    if not _any_labelled(dataset):
        raise ProtosegError(
            f"split {dataset.split!r}: expected labelled pixels to validate on, got {len(dataset)} images without any: "
            "choose another data.val_split, or train without validation: trainer.limit_val_batches=0"
        )


def _any_labelled(dataset: SegmentationDataset) -> bool:
    masked = (index for index, (_, mask) in enumerate(dataset.samples) if mask is not None)
    return any((label != ignored_in(label)).any() for label in map(dataset.read_label, masked))
