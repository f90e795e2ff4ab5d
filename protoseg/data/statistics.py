"""How many pixels of each class every image holds: for class frequencies and for rare-class sampling."""

import hashlib
import json
import math
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from protoseg import distributed
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import check_pixels, file_size
from protoseg.data.files import reading
from protoseg.files import write_text
from protoseg.text import say
from protoseg.types import ProtosegError

_PACKAGE = Path(__file__).resolve().parents[1]
_PROGRESS_BAR_FROM = 500
_THREADS = 8
_IMAGES, _PIXELS, _LEAST_STD = 256, 10_000, 0.01  # of channels: the last for one that is the same everywhere
_KEEP_EVERY = 60.0  # seconds: what a stopped count loses at most


@dataclass(frozen=True)
class ClassStatistics:
    """Pixel counts of a split."""

    classes: tuple[str, ...]  # by train id
    names: tuple[str, ...]  # the images, as paths in the folder that holds the data
    counts: NDArray[np.int64]  # ``n c``, pixels of each class in the mask of each image, at its full size
    path: Path | None = None  # the file that keeps all this; None if it could not be written

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of each class in all images, ``c``."""
        return np.asarray(self.counts.sum(axis=0))

    def draw(self, number: int, seed: int) -> list[int]:
        """The indices of so many of the images, drawn so that every class occurs that does at all; ascending.

        From the class that the fewest images show to the one that most do: where no image drawn so far shows it, one is
        drawn of that half of its images that shows most of it. The rest is any. Raises ProtosegError: too few or many.
        """
        shown, chance = self.counts > 0, np.random.default_rng(seed)
        drawn: list[int] = []
        for of_class in np.argsort(shown.sum(0), kind="stable"):
            images = np.argsort(-self.counts[:, of_class], kind="stable")[: (shown[:, of_class].sum() + 1) // 2]
            if len(images) and not shown[drawn, of_class].any():
                drawn.append(int(chance.choice(images)))
        if not len(drawn) <= number <= len(shown):
            few, many = f"at least {len(drawn)} images, to show every class", f"at most the {len(shown)} there are"
            raise ProtosegError(f"draw: expected {few if number < len(drawn) else many}, got {number}")
        others = chance.permutation(np.setdiff1d(np.arange(len(shown)), drawn))
        return sorted([*drawn, *others[: number - len(drawn)].tolist()])


def rare_class_probability(pixels: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """DAFormer's probability to draw each class (arXiv 2111.14887, Section 3.2): softmax over them of (1 - f) / T.

    f is a class's share of ``pixels``, ``c`` in any unit; the smaller T, the more the rarest class is preferred. The
    result sums to 1, 0 for a class without pixels. Raises ProtosegError: no pixels at all.
    """
    present = pixels > 0
    if not present.any():
        raise ProtosegError("rare-class sampling: expected labelled pixels, got none: check the masks")
    # The constant 1 / T cancels; without it, the rarest class has the exponent nearest to 0.
    exponent = -(pixels - pixels[present].min()) / (pixels.sum() * temperature)
    weight = np.exp(np.where(present, exponent, -np.inf))
    return np.asarray(weight / weight.sum())


def class_statistics(dataset: SegmentationDataset) -> ClassStatistics:
    """The statistics of a data set, from their file; masks that are not in it, or changed since, are counted and kept.

    The file is a readable ``protoseg_statistics_SPLIT_CLASSES_KEY.json`` in the folder that holds the images and
    masks, or, where that is read-only or inside this package, in ``protoseg`` under the user's cache folder. While
    counting, it is written once a minute, and a count that was stopped goes on from there. Every process counts alone.

    Raises ProtosegError: an image without mask, or a mask that is bad.
    """
    kept = _Kept(dataset)
    missing = [index for index in range(len(kept.names)) if index not in kept.rows]
    if missing:
        if distributed.rank() == 0:
            where = kept.places[0].parent
            say(f"Counting the pixels of {len(missing)} masks; the counts are kept in {where}", stderr=True)
        kept.write(missing, count_pixels(dataset, missing, partial(kept.write, missing)))
        if kept.path is None:
            warnings.warn(f"class statistics are not kept and will be counted again: {kept.reason}", stacklevel=2)
    return kept.statistics()


def kept_statistics(dataset: SegmentationDataset) -> ClassStatistics | None:
    """The statistics of a data set if they were counted before, and kept; no mask is opened."""
    kept = _Kept(dataset)
    return kept.statistics() if len(kept.rows) == len(kept.names) else None


def count_pixels(
    dataset: SegmentationDataset,
    indices: Sequence[int] | None = None,
    keep: Callable[[NDArray[np.int64]], object] = lambda counts: None,
) -> NDArray[np.int64]:
    """Pixels of each class in the mask of each sample (``indices``, or all), int64 ``n c``; raises as ``read_label``.

    Read by several threads; ``keep`` is called with the counts so far, once a minute.
    """
    num_classes = dataset.label_space.num_classes
    rows: list[NDArray[np.intp]] = []
    kept_at = time.monotonic()
    for row in in_threads(
        lambda index: np.bincount(dataset.read_label(index).ravel(), minlength=num_classes)[:num_classes],
        range(len(dataset)) if indices is None else indices,
        "counting classes",
    ):
        rows.append(row)
        if time.monotonic() - kept_at > _KEEP_EVERY:
            keep(np.stack(rows).astype(np.int64))
            kept_at = time.monotonic()
    return np.stack(rows).astype(np.int64)


def image_sizes(dataset: SegmentationDataset) -> Counter[tuple[int, int]]:
    """How many images there are of each width and height; raises as ``image_size``."""
    return Counter(in_threads(image_size, [image for image, _ in dataset.samples], "reading sizes"))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, by the file's head alone; raises ProtosegError: no image, or of too many pixels."""
    with reading(path, "image"):
        size = file_size(path)
    check_pixels(f"image {path}", *size)
    return size


def channel_statistics(dataset: SegmentationDataset) -> tuple[list[list[float]], list[float], list[float]]:
    """Of each channel the values that become 0 and 1, and mean and standard deviation of what they become.

    Measured on up to 256 images and 10,000 pixels of each. The range of bytes is 0 to 255; of other numbers it leaves
    out the lowest and the highest 0.1 % of a channel; one that is set stays. From now on the data set is read so.
    Raises ProtosegError: an image that cannot be read, or has other channels.
    """

    def look(index: int) -> NDArray[Any]:
        part, index = dataset.locate(index)
        pixels = part.reader.raw(part.samples[index][0])
        step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // _PIXELS))
        return pixels[::step, ::step].reshape(-1, pixels.shape[2]).copy()

    found = np.concatenate([*in_threads(look, spread(len(dataset), _IMAGES), "measuring channels")])
    readers = [part.reader for part in dataset.parts or [dataset]]
    pairs = zip(*np.percentile(found, (0.1, 99.9), axis=0).tolist(), strict=True)
    measured = [(low, high if high > low else low + 1) for low, high in pairs]
    for reader in readers:
        reader.ranges = readers[0].ranges or ([(0, 255)] * len(measured) if found.dtype == np.uint8 else measured)
    scaled = readers[0].scaled(found, "")
    std = np.maximum(scaled.std(0, np.float64), _LEAST_STD)
    return [list(pair) for pair in readers[0].ranges], scaled.mean(0, np.float64).tolist(), std.tolist()


def spread(total: int, count: int) -> list[int]:
    """``count`` of ``total`` indices, evenly spread from the first to the last; all where there are no more."""
    return [int(i) for i in np.linspace(0, total - 1, min(count, total)).round()]


def in_threads(task: Callable[[Any], Any], indices: Sequence[Any], title: str) -> Iterator[Any]:
    """The results of ``task`` in order, under a progress bar where there are many (on the first rank) and a title."""
    quiet = not title or len(indices) <= _PROGRESS_BAR_FROM or distributed.rank() != 0
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        # After an error ``map`` cancels what is left.
        yield from track(pool.map(task, indices), title, total=len(indices), disable=quiet)


class _Kept:
    """The counts of the masks that have not changed since, by index, of the file that holds the most of them."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        holding = [path.absolute().parent for sample in dataset.samples for path in sample if path is not None]
        folder = Path(os.path.commonpath([*dict.fromkeys(map(str, holding))]))
        self.classes = dataset.label_space.classes
        self.names = tuple(path.absolute().relative_to(folder).as_posix() for path, _ in dataset.samples)
        self._keys = [(name, *stamp(mask)) for name, (_, mask) in zip(self.names, dataset.samples, strict=True)]
        inside = folder == _PACKAGE or _PACKAGE in folder.parents or bool(dataset.parts)
        # Asked of the mode, because root could write anyway: a folder made read-only is meant to stay as it is.
        kept_out = inside or not folder.stat().st_mode & 0o222
        files = (*self.names, *(path.absolute().relative_to(folder).as_posix() for _, path in dataset.samples if path))
        self.places = [] if kept_out else [folder / _file_name(dataset, files)]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "protoseg"
        # There, data sets of many folders may meet.
        self.places.append(cache / _file_name(dataset, (str(folder), *files)))
        self.path: Path | None
        self.rows, self.path = max(((self._load(path), path) for path in self.places), key=lambda found: len(found[0]))
        self.reason = ""  # why none of the places takes the counts

    def statistics(self) -> ClassStatistics:
        counts = np.array([self.rows[i] for i in sorted(self.rows)], np.int64).reshape(-1, len(self.classes))
        return ClassStatistics(self.classes, self.names, counts, self.path)

    def write(self, indices: Sequence[int], counts: NDArray[np.int64]) -> None:
        """Add the counts of the first of ``indices``, and write all to the first place that takes them."""
        self.rows.update(zip(indices, counts, strict=False))
        images = ",\n".join(json.dumps([*self._keys[i], self.rows[i].tolist()]) for i in sorted(self.rows))
        text = f'{{"classes": {json.dumps(self.classes)},\n"pixels": [\n{images}\n]}}\n'
        self.path = None
        for place in self.places:
            try:
                write_text(place, text)
                self.path = place
                return
            except ProtosegError as error:
                self.reason = str(error)

    def _load(self, path: Path) -> dict[int, NDArray[np.int64]]:
        """The counts in ``path``; none where it is missing, damaged or of other classes."""
        wanted = {key: index for index, key in enumerate(self._keys)}
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            content = json.loads(path.read_text(encoding="utf-8"))
            keyed = ((tuple(key), row) for *key, row in content["pixels"])
            found = {wanted[key]: np.array(row, np.int64) for key, row in keyed if key in wanted}
            shapes = {row.shape for row in found.values()}
            if tuple(content["classes"]) == self.classes and shapes <= {(len(self.classes),)}:
                return found
        return {}


def stamp(mask: Path | None) -> tuple[int, int]:
    """Size and time of a mask; of one that is not there, nothing that a file could have."""
    with suppress(OSError):
        info = os.stat(mask or "")
        return info.st_size, info.st_mtime_ns
    return -1, -1


def _file_name(dataset: SegmentationDataset, names: tuple[str, ...]) -> str:
    """A name that is apart for every split, choice of images and masks, reading of these, label space and mapping."""
    space, parts = dataset.label_space, dataset.parts or [dataset]
    what = [type(dataset).__qualname__, space.classes, *(part.id_table.tolist() for part in parts), names]
    what += [[f"{m}{m.file.clear_palettes or ''}", *part.colors.items()] for part in parts if (m := part.mask_reading)]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
    readable = "_".join(re.sub(r"\W+", "-", part) for part in (dataset.split, space.name))
    return f"protoseg_statistics_{readable}_{key}.json"
