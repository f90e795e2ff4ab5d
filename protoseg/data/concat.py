"""Several data sets as one: images drawn from all of them, perhaps by weight, labels read as the same classes."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from protoseg.data.datamodule import SegmentationDataModule
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import Ids
from protoseg.data.transforms import TrainTransform
from protoseg.types import LabelSpace, ProtosegError

_OF_PARTS = {"dataset", "root", "train_split", "val_split", "exif", "scale", "max_class_share"}


class Concatenation(SegmentationDataset):
    """The samples of several data sets of the same classes, one after the other, each read as its own data set does.

    Args:
        parts: the data sets.
        split: any name.
        weights: how often each is drawn in training, relative to the others; None: as often as it has images.
    """

    def __init__(
        self, parts: Sequence[SegmentationDataset], split: str, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__([sample for part in parts for sample in part.samples], split)
        self.parts, self.label_space = parts, parts[0].label_space
        self.shares = [] if weights is None else [(len(part), w) for part, w in zip(parts, weights, strict=True)]
        self._ends = np.cumsum([len(part) for part in parts])

    def locate(self, index: int) -> tuple[SegmentationDataset, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part.locate(index - int(self._ends[number]) + len(part))

    def read(self, index: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Ids]:
        part, index = self.locate(index)
        return part.read(index)

    def read_label(self, index: int) -> Ids:
        part, index = self.locate(index)
        return part.read_label(index)


class ConcatDataModule(SegmentationDataModule):
    """Trains on all its parts, and validates on those that have a ``val_split``, all their pixels together.

    Statistics, and with them rare-class sampling and class weights, are those of all parts; with ``weights``, of images
    as they are drawn. Each part is read, scaled and split as it says itself; crops, batches, … are given here.

    Args:
        parts: by name.
        weights: how often an image is of each part, relative to the others; None: as often as it has images.
        photometric, options: as of ``SegmentationDataModule``, but for what parts have of their own.

    Raises:
        ProtosegError: no part, parts whose classes are not of the same names, weights that are not those of the parts
            or not above 0; or as ``SegmentationDataModule``.
    """

    def __init__(
        self,
        parts: Mapping[str, SegmentationDataModule],
        crop_size: Sequence[int],
        weights: Mapping[str, float] | None = None,
        photometric: bool = True,
        **options: Any,
    ) -> None:
        if wrong := _OF_PARTS & options.keys():
            raise ProtosegError(f"data: expected {', '.join(wrong)} of each part (data.parts.NAME), got it for all")
        if not parts:
            raise ProtosegError("data.parts: expected data sets, got none: add e.g. +data@data.parts.NAME=camvid")
        self.parts = dict(parts)
        for part in self.parts.values():
            part.transform = TrainTransform(crop_size, part.scale, photometric, part.max_class_share)
        space = _joined_classes(self.parts)
        dataset = partial(_concatenated, self.parts, _checked(weights, self.parts))
        splits: dict[str, Any] = {"val_split": "val" if any(p.val_split for p in self.parts.values()) else None}
        options.setdefault("label_space", space)
        super().__init__(dataset, crop_size=crop_size, photometric=photometric, **splits, **options)

    def map_classes(self, label_space: LabelSpace, mapping: Mapping[str, str | None] | str | None) -> None:
        for part in self.parts.values():
            part.map_classes(label_space, mapping)
        self.label_space = label_space
        self._datasets.clear()


def _concatenated(
    parts: Mapping[str, SegmentationDataModule], weights: Sequence[float] | None, split: str, labels: bool = True
) -> Concatenation:
    """The split of all parts that have it, ``train`` and ``val`` being what each part calls so."""
    own = [{"train": part.train_split, "val": part.val_split}.get(split, split) for part in parts.values()]
    found = [part.dataset(name, labels) for part, name in zip(parts.values(), own, strict=True) if name is not None]
    return Concatenation(found, split, weights if len(found) == len(parts) else None)


def _joined_classes(parts: Mapping[str, SegmentationDataModule]) -> LabelSpace:
    """The classes of the first part, as which all others are read, by their names."""
    (first, space), *others = ((name, part.label_space) for name, part in parts.items())
    for name, other in others:
        if set(other.classes) != set(space.classes):
            alone = {first: set(space.classes) - set(other.classes), name: set(other.classes) - set(space.classes)}
            got = " and ".join(
                f"{', '.join(sorted(classes))} only in {key}" for key, classes in alone.items() if classes
            )
            raise ProtosegError(
                f"data.parts: expected the same classes in all parts, got {got}: set data.parts.NAME.relabel="
                "{CLASS: null}, or to the class that it becomes"
            )
        if other.classes != space.classes:
            parts[name].map_classes(space, {c: c for c in space.classes})
    return space


def _checked(weights: Mapping[str, float] | None, parts: Mapping[str, Any]) -> list[float] | None:
    if weights is None:
        return None
    good = all(isinstance(w, (int, float)) and isfinite(w) and w > 0 for w in weights.values())
    if not good or weights.keys() != parts.keys():
        raise ProtosegError(
            f"data.weights: expected a number above 0 for each of the parts {', '.join(parts)}, got "
            f"{', '.join(f'{name}: {w}' for name, w in weights.items())}: to leave a part out, take it from data.parts"
        )
    return [float(weights[name]) for name in parts]
