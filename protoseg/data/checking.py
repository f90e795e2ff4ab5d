"""Read every file of a data set and list all that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import orientation
from protoseg.data.faults import collect_faults
from protoseg.data.files import read_image
from protoseg.data.loading import seed_worker
from protoseg.data.statistics import in_threads
from protoseg.types import ProtosegError

_WORKERS_FROM = 64
_BATCH = 8


class _Faults(Dataset[list[str]]):
    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[str]:
        return sample_faults(self.dataset, index)


def sample_faults(dataset: SegmentationDataset, index: int) -> list[str]:
    """What is wrong with one image and its mask: unreadable, of two sizes, unknown ids. Empty where nothing is."""
    image, mask = dataset.samples[index]
    try:
        dataset.read(index)
    except ProtosegError as error:
        found = [str(error)]
    else:
        return []
    # ``read`` ends at a bad image; its mask may be bad as well.
    if mask is not None and _fails(lambda: read_image(image)):
        found += _fails(lambda: dataset.read_label(index))
    return found


def _fails(read: Callable[[], object]) -> list[str]:
    try:
        read()
    except ProtosegError as error:
        return [str(error)]
    return []


def file_faults(dataset: SegmentationDataset) -> Iterator[list[str]]:
    """``sample_faults`` of each sample in turn, read by as many processes as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loader: DataLoader[Any] = DataLoader(
        _Faults(dataset),
        batch_size=_BATCH,
        num_workers=cores if len(dataset) >= _WORKERS_FROM else 0,
        collate_fn=list,
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


def repeated_images(splits: Mapping[str, SegmentationDataset]) -> list[str]:
    """Images that are listed twice, in one split or in two: the same file, also by way of a link."""
    seen: dict[str, str] = {}
    found = []
    for split, path in _images(splits):
        where = f"{split} ({path})"
        other = seen.setdefault(os.path.realpath(path), where)
        if other is not where:
            found.append(f"expected every image once, got the same file in {other} and {where}: remove one of them")
    return found


def _images(splits: Mapping[str, SegmentationDataset]) -> Iterable[tuple[str, str]]:
    return ((split, str(image)) for split, dataset in splits.items() for image, _ in dataset.samples)
