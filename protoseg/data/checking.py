"""What is wrong with the files of a data set, all of them read; and what is odd about its labels, by a few."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from protoseg import distributed
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import FAILURES, largest_deep_value, orientation
from protoseg.data.loading import seed_worker
from protoseg.data.pairing import collect_faults
from protoseg.data.statistics import class_statistics, count_pixels, image_size, in_threads, kept_statistics, spread
from protoseg.types import LabelSpace, ProtosegError

_WORKERS_FROM = 64  # samples
_LOOKED_AT = 64  # images or masks, spread over a split
_COUNTED = 1000  # masks that are all counted where those looked at lack a class
_MOSTLY_IGNORED = 0.95


class Checked(NamedTuple):
    """What is wrong with a sample, and how many pixels of its mask are of each class and, last, ignored (``c + 1``)."""

    faults: list[str]
    pixels: NDArray[np.int64]


def check_sample(dataset: SegmentationDataset, index: int) -> Checked:
    """What is wrong with one image and its mask: unreadable, of two sizes, unknown ids."""
    num_classes, masked = dataset.label_space.num_classes, dataset.samples[index][1] is not None
    pixels, found = np.zeros(num_classes + 1, np.int64), []
    # ``read`` ends at a bad image; its mask may be bad as well.
    for read in (lambda: dataset.read(index)[1], lambda: dataset.read_label(index))[: 1 + masked]:
        try:
            label = read()
        except ProtosegError as error:
            found.append(str(error))
        else:
            if masked and not found:
                pixels += np.bincount(np.minimum(label, num_classes).ravel(), minlength=num_classes + 1)
            break
    return Checked([*dict.fromkeys(found)], pixels)


def check_samples(dataset: SegmentationDataset) -> Iterator[Checked]:
    """``check_sample`` of each sample in turn, read by as many processes as there are cores."""
    if dataset.reader.channels and not dataset.reader.ranges:  # what is read is looked at and dropped
        dataset.reader.ranges = [(0, 1)] * dataset.reader.channels
    loader: DataLoader[Any] = DataLoader(
        range(len(dataset)),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=distributed.usable_cores() if len(dataset) >= _WORKERS_FROM else 0,
        collate_fn=partial(check_sample, dataset),
        worker_init_fn=partial(seed_worker, seed=0, rank=0),
    )
    yield from loader


def listing_faults(make: Callable[[], SegmentationDataset]) -> tuple[SegmentationDataset | None, list[str]]:
    """Make a data set, and list the files that do not pair up; None where there is nothing left to read."""
    with collect_faults() as found:
        try:
            return make(), found
        except ProtosegError as error:
            return None, [*found, str(error)]


def image_notes(dataset: SegmentationDataset, most: int | None = None) -> Iterator[str]:
    """What is odd about images: files left out; of ``most`` of them (else all) those that EXIF wants turned, if they
    have masks; and, by a look at a few, 16 bits of which so few are used that 8 bits of them keep little.
    """
    yield from dataset.notes
    chosen = [dataset.samples[i] for i in spread(len(dataset), most or len(dataset))]
    paths = [image for image, mask in chosen if mask is not None]
    turned = [str(path) for path, how in zip(paths, in_threads(orientation, paths, ""), strict=True) if how > 1]
    if turned:
        done = "turned as their EXIF says" if dataset.turn else "as they are stored, which their EXIF would turn"
        remedy = f"else set data.exif={'ignore' if dataset.turn else 'apply'} ({', '.join(turned)})"
        text = f"{len(turned)} of {len(paths)} images are read {done}, and masks are never turned"
        yield f"{text}: see with `show` whether these fit; {remedy}"
    if dataset.reader.ranges or dataset.reader.channels:
        return
    largest, path = 0, None
    for index in spread(len(dataset), _LOOKED_AT):
        with suppress(*FAILURES, ProtosegError):  # told as faults
            found = largest_deep_value(dataset.samples[index][0])
            largest, path = (found, dataset.samples[index][0]) if found > largest else (largest, path)
    if 0 < largest < 1 << 15:
        levels, top = (largest >> 8) + 1, (1 << largest.bit_length()) - 1
        text = f"images of 16 bits hold values up to {largest} (e.g. {path}), of which {levels} of 256 levels are kept"
        yield f"{text}: set data.dataset.image_range=[0,{top}]"


def repeated_images(splits: Mapping[str, SegmentationDataset]) -> list[str]:
    """Images that are listed twice, in one split or in two: the same file, also by way of a link."""
    seen: dict[str, str] = {}
    found = []
    for split, path in ((split, image) for split, dataset in splits.items() for image, _ in dataset.samples):
        where = f"{split} ({path})"
        other = seen.setdefault(os.path.realpath(path), where)
        if other is not where:
            found.append(f"expected every image once, got the same file in {other} and {where}: remove one of them")
    return found


def check_training_labels(dataset: SegmentationDataset) -> None:
    """Look at a few masks, spread over the split, and warn as ``label_notes``; class counts that were kept are used.

    Where the few masks lack a class, the others are counted too, unless they are many; where none of them has a
    labelled pixel, the others are read until one has. Raises ProtosegError: no mask has a labelled pixel, there is but
    one class, one is annotated nowhere, or a mask is bad.
    """
    space = dataset.label_space
    lacking = [{*(part.rest or ())} - {*part.id_table.tolist()} for part in dataset.parts or [dataset]]
    if nowhere := set.intersection(*lacking):
        names = ", ".join(space.classes[i] for i in sorted(nowhere))
        text = f"annotated: expected every class in one of the data sets of the training, got {names} in none"
        raise ProtosegError(f"{text}: add the data set that has it, or leave it out: relabel={{CLASS: null}}")
    if space.num_classes == 1:
        text = f"classes: expected at least two to tell apart, got {space.classes[0]!r} alone: add a background class"
        raise ProtosegError(f"{text} for what is void now (its colour or id under classes instead of void)")
    kept, chosen = kept_statistics(dataset), spread(len(dataset), _LOOKED_AT)
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
    got = f"{len(dataset)} masks in which every pixel is ignored ({dataset.samples[0][1]}, …)"
    remedy = f"check the masks, and the ids or colours of the classes ({', '.join(dataset.label_space.classes[:5])}, …)"
    return ProtosegError(f"split {dataset.split!r}: expected labelled pixels, got {got}: {remedy}")


def label_notes(
    space: LabelSpace, pixels: NDArray[np.int64], ignored: float, looked: str, whole: bool = True
) -> list[str]:
    """What is odd about labels: nearly all ignored, one class alone, and, of the ``whole``, classes without a pixel.

    Of the pixels of each class, ``c``, and the share of ignored ones in the masks ``looked`` at.
    """
    notes, present = [], np.flatnonzero(pixels)
    missing = [space.classes[i] for i in np.flatnonzero(pixels[: space.leaves] == 0)]
    if ignored >= _MOSTLY_IGNORED:
        notes.append(f"{ignored:.1%} of the pixels of {looked} are ignored: if these are no scribbles or points, check")
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
        text = f"split {dataset.split!r}: expected labelled pixels to validate on, got none in {len(dataset)} images"
        raise ProtosegError(f"{text}: choose another data.val_split, or do without: trainer.limit_val_batches=0")


def _any_labelled(dataset: SegmentationDataset) -> bool:
    masked = (index for index, (_, mask) in enumerate(dataset.samples) if mask is not None)
    return any((label < dataset.label_space.num_classes).any() for label in map(dataset.read_label, masked))
