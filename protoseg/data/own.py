"""One's own labelled images: two folders and a file of classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.data.class_file import ClassFile, read_class_file
from protoseg.data.dataset import FilePair, SegmentationDataset
from protoseg.data.files import by_key, list_images, pair, stem_in, stems_of_masks
from protoseg.data.label_spaces import Ids
from protoseg.data.mask_reading import MaskReading
from protoseg.types import LabelSpace, ProtosegError


class LabelledFolder(SegmentationDataset):
    """``images/`` and ``masks/`` (or ``labels/``) with the same names, and ``classes.yaml`` (``read_class_file``).

    Images are PNG or JPEG. Masks are PNG of ids, or of the colours of the classes: ``mask_reading`` finds out which,
    once for the masks of all splits.
    The splits are, whichever is there:

    - subfolders: ``images/train``, ``masks/train``, ``images/val``, …;
    - lists: ``train.txt``, ``val.txt``, … beside ``images``, with the name of an image (its path in ``images``, with
      or without suffix) in each line;
    - else one drawn by chance: ``val_share`` of the images, always the same for one seed, are ``val``, the others
      ``train``. Frames of one video are better split by hand: neighbours on both sides flatter the result.

    Licence and citation are your own.

    Args:
        root: the folder that holds ``images`` and ``masks``.
        classes: the file of the classes, or what ``read_class_file`` gave.
        split: ``train``, ``val`` or ``test``.
        val_share: share of the images that are ``val`` where the split is drawn.
        split_seed: seed of that draw.
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing, do not pair up or are listed twice; two kinds of splits at once; masks
            of which some hold ids and others colours, or which could be read in two ways (``mask_reading.decide``).
    """

    @classmethod
    def space(cls, **options: Any) -> LabelSpace:
        return _class_file(options["classes"]).label_space

    source = "It is a folder of your own, with images/, masks/ and classes.yaml (see protoseg.data.LabelledFolder)."

    def __init__(
        self,
        root: str | Path,
        classes: str | Path | ClassFile,
        split: str = "train",
        val_share: float = 0.2,
        split_seed: int = 0,
        labels: bool = True,
    ) -> None:
        self.check_split(split)
        if not 0 < val_share < 1:
            raise ProtosegError(f"data.dataset.val_share: expected a share between 0 and 1, got {val_share}")
        images = Path(root) / "images"
        self.check_folder(images)
        file = _class_file(classes)
        self.label_space, self.id_table, self.colors = file.label_space, file.table, file.colors
        masks = _mask_folder(Path(root)) if labels else None
        lists = {name: Path(root) / f"{name}.txt" for name in self.splits if (Path(root) / f"{name}.txt").exists()}
        folders = [name for name in self.splits if (images / name).is_dir()]
        if folders and (lists or list_images(images)):
            raise ProtosegError(
                f"{images}: expected splits by subfolders or by lists, got the subfolder {folders[0]} and "
                f"{next(iter(lists.values()), 'images beside it')}: keep one of the two"
            )
        if folders:
            samples = self._pairs(images / split, masks and masks / split)
        elif lists:
            samples = self._pairs(images, masks, _listed(images, lists, split))
        else:
            samples = _drawn(self._pairs(images, masks), images, split, val_share, split_seed)
        super().__init__(samples, split)
        found = [path for path in list_images(masks, recursive=True) if path.suffix.lower() == ".png"] if masks else []
        self._masks = MaskReading(found, file)
        self.reading = str(self._masks)

    def read_label(self, index: int) -> Ids:
        mask = self.samples[index][1]
        return super().read_label(index) if mask is None else self._masks.label(mask, self.id_table, self.colors)

    def map_classes(self, label_space: LabelSpace, table: NDArray[np.uint8]) -> None:
        super().map_classes(label_space, table)
        self.colors = {color: int(table[label]) for color, label in self.colors.items()}

    def _pairs(self, images: Path, masks: Path | None, keys: list[str] | None = None) -> list[FilePair]:
        """Images and masks by their paths in the folders; only ``keys`` if given."""
        self.check_folder(images)
        found = _images(images)
        found = found if keys is None else {key: found[key] for key in keys}
        if masks is None:
            return pair(found, None, where=f"{images}")
        self.check_folder(masks)
        labels = stems_of_masks(masks, found, recursive=True)
        labels = labels if keys is None else {key: labels[key] for key in keys if key in labels}
        return pair(found, labels, where=f"{images} and {masks}")


def _class_file(classes: str | Path | ClassFile) -> ClassFile:
    return classes if isinstance(classes, ClassFile) else read_class_file(classes)


def _mask_folder(root: Path) -> Path:
    masks, labels = root / "masks", root / "labels"
    if masks.is_dir() and labels.is_dir():
        raise ProtosegError(f"{root}: expected one folder of masks, got both masks and labels: rename or remove one")
    return labels if labels.is_dir() else masks


def _images(folder: Path) -> dict[str, Path]:
    return by_key(list_images(folder, recursive=True), lambda path: stem_in(folder, path))


def _listed(images: Path, lists: Mapping[str, Path], split: str) -> list[str]:
    """The images of the list of ``split``; all lists are read, to find images that are in two."""
    if split not in lists:
        raise ProtosegError(
            f"expected a list of the images of split {split!r}, got only {', '.join(p.name for p in lists.values())} "
            f"in {images.parent}: add {split}.txt, or choose data.train_split and data.val_split among these"
        )
    known, wanted = _images(images), []
    seen: dict[str, str] = {}
    for name, path in lists.items():
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            where, written = f"{path}, line {number}", images / line.strip()
            key = next((k for k in (line.strip(), stem_in(images, written)) if k in known), None)
            if key is None:
                raise ProtosegError(f"{where}: expected the name of an image in {images}, got {line.strip()!r}")
            if key in seen:
                raise ProtosegError(f"{where}: expected every image once, got {key!r}, as in {seen[key]}: remove one")
            seen[key] = where
            wanted += [key] if name == split else []
    return wanted


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProtosegError(f"{path}: expected a text file in UTF-8, got one that cannot be read ({error})") from error


def _drawn(samples: list[FilePair], images: Path, split: str, val_share: float, seed: int) -> list[FilePair]:
    """The images with the smallest hashes are ``val``: adding images moves few of the others."""
    num_val = max(1, round(val_share * len(samples)))
    if split not in ("train", "val") or num_val >= len(samples):
        raise ProtosegError(
            f"{images}: expected split train or val and at least 2 images, to draw the splits by chance, got {split!r} "
            f"and {len(samples)} images: make subfolders images/{split}, masks/{split}, or a list {split}.txt"
        )

    def drawn(sample: FilePair) -> str:
        return sha256(os.fsencode(f"{seed} {stem_in(images, sample[0])}")).hexdigest()

    val = {image for image, _ in sorted(samples, key=drawn)[:num_val]}
    return [sample for sample in samples if (sample[0] in val) == (split == "val")]
