"""Several data sets as one: images drawn from all of them, perhaps by weight, labels read as the same classes."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.data.class_file import joined
from protoseg.data.datamodule import SegmentationDataModule
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import Ids
from protoseg.data.transforms import TrainTransform
from protoseg.types import LabelSpace, ProtosegError

_OF_PARTS = {"dataset", "root", "train_split", "val_split", "exif", "scale", "max_class_share", "annotated"}
_OF_PARTS |= {"train_list", "listed"}


class Concatenation(SegmentationDataset):
    """The samples of all parts, one after the other, each read as its own data set does and split as that calls it."""

    def __init__(
        self, parts: Sequence[SegmentationDataModule], weights: Sequence[float], split: str, labels: bool = True
    ) -> None:
        own = [{"train": part.train_split, "val": part.val_split}.get(split, split) for part in parts]
        self.parts = [part.dataset(name, labels) for part, name in zip(parts, own, strict=True) if name is not None]
        super().__init__([sample for part in self.parts for sample in part.samples], split)
        self.reader = self.parts[0].reader if self.parts else self.reader
        self._ends = np.cumsum([len(part) for part in self.parts])
        if weights and split == "train":
            each = [np.full(len(part), weight / len(part)) for part, weight in zip(self.parts, weights, strict=True)]
            self.weights = np.concatenate(each)

    def locate(self, index: int) -> tuple[SegmentationDataset, int]:
        part = self.parts[number := int(np.searchsorted(self._ends, index, side="right"))]
        return part, index - int(self._ends[number]) + len(part)

    def read(self, index: int) -> tuple[NDArray[Any], Ids]:
        part, index = self.locate(index)
        return part.read(index)

    def read_label(self, index: int) -> Ids:
        part, index = self.locate(index)
        return part.read_label(index)


class ConcatDataModule(SegmentationDataModule):
    """Trains on all its parts, and validates on those that have a ``val_split``, all their pixels together.

    Class counts, and with them rare-class sampling and class weights, are of all parts, with ``weights`` of images as
    they are drawn. Each part is split, read and scaled as it says itself; crops, batches, … are given here.

    ``weights`` is how often an image is of each part that is trained on; None: as often as it has images. The
    other options are those of ``SegmentationDataModule``, but for what parts have of their own.

    Parts of other classes are joined by name in a ``hierarchy``, or if one says (by ``relabel``) what is ``annotated``.

    Raises ProtosegError: no part, parts of other classes, weights not of its parts or not above 0; what parts raise.
    """

    def __init__(
        self,
        parts: Mapping[str, SegmentationDataModule],
        crop_size: Sequence[int],
        weights: Mapping[str, float] | None = None,
        photometric: bool = True,
        **options: Any,
    ) -> None:
        if wrong := sorted(_OF_PARTS & options.keys()):
            raise ProtosegError(f"data: expected {', '.join(wrong)} of each part (data.parts.NAME), got it for all")
        if not parts:
            raise ProtosegError("data.parts: expected data sets, got none: add e.g. +data@data.parts.NAME=camvid")
        given = {} if weights is None else dict(weights)
        good = all(isinstance(weight, (int, float)) and isfinite(weight) and weight > 0 for weight in given.values())
        drawn = [name for name, part in parts.items() if part.train_split]
        if not good or (weights is not None and not {*drawn} <= given.keys() <= parts.keys()):
            got = ", ".join(f"{name}: {weight}" for name, weight in given.items()) or "none"
            text = f"data.weights: expected a number above 0 for each part with a train_split, {', '.join(drawn)}"
            raise ProtosegError(f"{text}, got {got}: to leave a part out, take it from data.parts")
        self.parts = dict(parts)
        first, space = next((name, part.label_space) for name, part in parts.items())
        if joins := bool(options.get("hierarchy")) or any(part.annotated for part in parts.values()):
            space = joined([part.label_space for part in parts.values()])
        for name, part in self.parts.items():
            odd = sorted({*part.label_space.classes} ^ {*space.classes})
            if odd and not joins:
                got = f"{', '.join(odd)} in only one of {first} and {name}"
                remedy = "set data.parts.NAME.relabel={CLASS: null}, or to the class that it becomes"
                remedy += ", or say what is annotated, which joins them by name: data.parts.NAME.annotated=[CLASS, …]"
                raise ProtosegError(f"data.parts: expected the same classes in all parts, got {got}: {remedy}")
            if part.label_space.classes != space.classes:
                part.map_classes(space, {c: c for c in part.label_space.classes})
            colours = {key: options[key] for key in ("aspect", "brightness", "augment") if key in options}
            part.transform = TrainTransform(crop_size, part.scale, photometric, part.max_class_share, **colours)
        dataset = partial(Concatenation, [*self.parts.values()], [float(given[name]) for name in drawn if given])
        options["val_split"] = "val" if any(part.val_split for part in self.parts.values()) else None
        super().__init__(dataset, crop_size=crop_size, photometric=photometric, **options | {"label_space": space})

    @property
    def unlabelled(self) -> list[int]:
        judged = [part for part in self.parts.values() if part.val_split] or self.parts.values()
        return sorted(set.intersection(*(set(part.unlabelled) for part in judged)))

    def map_classes(self, label_space: LabelSpace, mapping: Mapping[str, str | None] | str | None) -> None:
        for part in self.parts.values():
            part.map_classes(label_space, mapping)
        self.label_space = label_space
        self._datasets.clear()
