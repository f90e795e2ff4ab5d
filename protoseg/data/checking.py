"""Read every file of a data set and list all that is wrong with it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import FAILURES, largest_deep_value, orientation
from protoseg.data.loading import seed_worker
from protoseg.data.pairing import collect_faults
from protoseg.data.statistics import in_threads, spread
from protoseg.distributed import usable_cores
from protoseg.types import ProtosegError

_WORKERS_FROM, _BATCH = 64, 8  # samples
_LOOKED_AT = 64


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


def _check_all(dataset: SegmentationDataset, indices: Sequence[int]) -> list[Checked]:
    return [check_sample(dataset, index) for index in indices]


def check_samples(dataset: SegmentationDataset) -> Iterator[Checked]:
    """``check_sample`` of each sample in turn, read by as many processes as there are cores."""
    if dataset.reader.channels and not dataset.reader.ranges:  # what is read is looked at and dropped
        dataset.reader.ranges = [(0, 1)] * dataset.reader.channels
    loader: DataLoader[Any] = DataLoader(
        range(len(dataset)),  # type: ignore[arg-type]
        batch_size=_BATCH,
        num_workers=usable_cores() if len(dataset) >= _WORKERS_FROM else 0,
        collate_fn=partial(_check_all, dataset),
        worker_init_fn=partial(seed_worker, seed=0, rank=0),
    )
    for batch in loader:
        yield from batch


def listing_faults(make: Callable[[], SegmentationDataset]) -> tuple[SegmentationDataset | None, list[str]]:
    """Make a data set, and list the files that do not pair up; None where there is nothing left to read."""
    with collect_faults() as found:
        try:
            return make(), found
        except ProtosegError as error:
            return None, [*found, str(error)]


def turned_images(dataset: SegmentationDataset, indices: Sequence[int] | None = None) -> str:
    """Which of the images (of ``indices``) EXIF wants turned, and what is done about it; "" if none, or no masks."""
    chosen = [dataset.samples[i] for i in (range(len(dataset)) if indices is None else indices)]
    paths = [image for image, mask in chosen if mask is not None]
    found = [str(path) for path, how in zip(paths, in_threads(orientation, paths, ""), strict=True) if how > 1]
    if not found:
        return ""
    done = "turned as their EXIF says" if dataset.turn else "as they are stored, which their EXIF would turn"
    return (
        f"{len(found)} of {len(paths)} images are read {done}, and masks are never turned: see with `show` whether "
        f"these fit; else set data.exif={'ignore' if dataset.turn else 'apply'} ({', '.join(found)})"
    )


def deep_images(dataset: SegmentationDataset) -> str:
    """Whether images of 16 bits use few of these, so that 8 bits of them keep little; "" if not. Looks at a few."""
    if dataset.reader.ranges or dataset.reader.channels:
        return ""
    largest, path = 0, None
    for index in spread(len(dataset), _LOOKED_AT):
        with suppress(*FAILURES, ProtosegError):  # told as faults
            found = largest_deep_value(dataset.samples[index][0])
            largest, path = (found, dataset.samples[index][0]) if found > largest else (largest, path)
    if not 0 < largest < 1 << 15:
        return ""
    top = (1 << largest.bit_length()) - 1
    text = f"images of 16 bits hold values up to {largest} (e.g. {path}), of which {(largest >> 8) + 1} of 256 levels"
    return f"{text} are kept: set data.dataset.image_range=[0,{top}]"


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
