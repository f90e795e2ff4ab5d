"""One's own labelled images: two folders and a file of classes."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from protoseg.data import pairing
from protoseg.data.channels import ImageReader, as_list
from protoseg.data.class_file import ClassFile, MaskReading, read_class_file
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.pairing import IMAGE_SUFFIXES, FilePair, Files, by_stem, list_images, stem_in
from protoseg.text import command, override
from protoseg.types import LabelSpace, ProtosegError, StrPath

_IMAGES, _MASKS = pairing.NAMES["images"], pairing.NAMES["masks"]
_SPLIT = re.compile(r"(train|val|test)(?:ing|id|idation)?(?:[-_]?(?:set|\d{4}))?", re.IGNORECASE)
_LIKE_SPLIT = re.compile(pairing.NAMES["like_splits"])


class LabelledFolder(SegmentationDataset):
    """``images/`` and ``masks/`` with the same names, and ``classes.yaml`` (``read_class_file``).

    ``docs/data.md`` has the layouts, names, formats and splits that are read. Masks hold ids, or the colours of the
    classes: ``MaskReading`` finds out which, once for all splits. These are subfolders, lists of images, or, where
    there is neither, drawn by chance.

    Args:
        root: the folder that holds all this.
        classes: the file of the classes, or what ``read_class_file`` gave; None for images alone.
        split: ``train``, ``val``, ``test``, or the name of a subfolder or a list.
        val_share, split_seed: share of the images that are ``val`` where the split is drawn, the same for one seed.
        labels: False lists the images alone; where there are no masks all of them, and where there are lists, but not
            of this split, those that no list has.
        images, masks: the folders' names, where they are called otherwise or there are several.
        mask_suffix: how the names of masks end (or begin), where every image has several.
        reading: image_range, channels, bands, shown, see :class:`protoseg.data.channels.ImageReader`.

    Raises ProtosegError: files that are missing, do not pair up or are listed twice; splits that are not clear; masks
    that could be read in two ways (``class_file.decide``).
    """

    @classmethod
    def space(cls, **options: Any) -> LabelSpace | None:
        if options["classes"] is None:
            return None
        return replace(read_class_file(options["classes"]).label_space, shown=tuple(as_list(options.get("shown"))))

    source = "It is a folder of your own, with images/, masks/ and classes.yaml (see docs/data.md)."

    def __init__(
        self,
        root: str | Path,
        classes: str | Path | ClassFile | None,
        split: str = "train",
        val_share: float = 0.2,
        split_seed: int = 0,
        labels: bool = True,
        images: str | None = None,
        masks: str | None = None,
        mask_suffix: str | None = None,
        **reading: Any,
    ) -> None:
        self.reader = ImageReader(**reading)
        root = Path(root)
        self.check_folder(root)
        if classes is not None:
            file = read_class_file(classes)
            self.label_space = replace(file.label_space, shown=tuple(self.reader.shown))
            self.id_table, self.colors = file.table, file.colors
        elif labels:
            text = f"data.dataset.classes: expected the file that says what the masks in {root} mean, got none"
            raise ProtosegError(f"{text}: set it")
        self._labels, self._images, self._masks, self._suffix = labels, images, masks, mask_suffix
        self._naming = pairing.Naming()
        in_root = _named(root, images, _IMAGES)
        flat = not in_root and images is None
        places = {n: p for n, p in _splits(root).items() if _named(p, images, _IMAGES) or (flat and list_images(p))}
        lists = _splits(root, ".txt", split)
        if places and (lists or in_root):
            raise _two_kinds(root, places, lists)
        if places:
            samples = self._pairs(*self._find(_chosen(places, split, root)))
        else:
            samples = self._split_inside(*self._find(root), lists, split, val_share, split_seed)
        super().__init__(samples, split)
        if labels:
            found: list[Path] = []
            for place in places.values() or [root]:
                with suppress(ProtosegError):  # told when that split is read
                    found += filter(self._naming.is_mask, self._listed(*self._find(place))[1])
            self.mask_reading = MaskReading(found, file)

    def _find(self, place: Path) -> tuple[Path, Path | None]:
        """The folders of images and of masks, which may be one; images may lie in ``place`` itself."""
        flat = self._images is None and not _named(place, None, _IMAGES) and bool(list_images(place))
        images = place if flat else _one(place, "images", self._images, _IMAGES)
        self._flat = place if flat else None
        masks = _named(place, self._masks, _MASKS)
        if not masks and self._masks is None and self._listed(images, images)[1]:
            return images, images
        return images, _one(place, "masks", self._masks, _MASKS) if self._labels else next(iter(masks), None)

    def _listed(self, images: Path, masks: Path | None) -> tuple[list[Path], list[Path]]:
        """The files of images and of masks; those of one folder are told apart."""
        files = self.reader.first(list_images(images, recursive=images != self._flat))
        if masks == images:
            return pairing.apart(files, self._suffix)
        return files, list_images(masks, recursive=True) if masks else []

    def _split_inside(
        self, images: Path, masks: Path | None, lists: Files, split: str, val_share: float, seed: int
    ) -> list[FilePair]:
        """The pairs of a split, told apart inside the folders of images and masks, by lists or by chance."""
        folders = _splits(images, also=split)
        if folders and (lists or list_images(images)):
            raise _two_kinds(images, folders, lists)
        if folders:
            place = _chosen(folders, split, images)
            return self._pairs(place, masks and _splits(masks, also=split).get(_split_name(split), masks / place.name))
        samples = self._pairs(images, masks, lists, split)
        if lists or masks is None:
            return samples
        inside = (name for image, _ in samples for name in image.relative_to(images).parts[:-1])
        if like := next(filter(_LIKE_SPLIT.search, inside), None):
            text = f"{images}: expected folders of splits (train, val, test) or none to draw splits from, got {like}"
            remedy = "set data.train_split and data.val_split to folders there, or list images in train.txt and val.txt"
            raise ProtosegError(f"{text}: {remedy}")
        return _drawn(samples, images, split, val_share, seed)

    def _pairs(self, images: Path, masks: Path | None, lists: Files | None = None, split: str = "") -> list[FilePair]:
        """Images and masks by their paths in the folders; with ``lists`` only those of ``split``."""
        masks = masks if self._labels or masks == images else None
        folders = (images,) if masks in (None, images) else (images, masks)
        for folder in folders:
            self.check_folder(folder)
        self.notes = [f"{folder}: left out {told}" for folder in folders if (told := pairing.other_formats(folder))]
        files, others = self._listed(images, masks)
        found = by_stem(images, files)
        keys = _keys(found, images, lists, split, not self._labels) if lists else list(found)
        chosen = {key: found[key] for key in keys}
        if masks is None or not self._labels:
            self.notes += [f"{images}: left out {len(others)} masks ({others[0].name}, …)"] if others else []
            return pairing.pair(chosen, None, f"{images}", folders)
        where = " and ".join(map(str, folders))
        labels = pairing.stems_of_masks(masks, others, found)
        labels, self._naming = pairing.by_image(found, labels, where, self._suffix)
        self.notes += [f"{where}: {self._naming}"] if str(self._naming) else []
        if lists:
            labels = {key: labels[key] for key in keys if key in labels}
        return pairing.pair(chosen, labels, where, (images, masks))


def _split_name(name: str) -> str:
    """``train``, ``val`` or ``test`` for what means the same; else the name itself."""
    found = _SPLIT.fullmatch(name)
    return found[1].lower() if found else name


def _splits(folder: Path, suffix: str = "", also: str = "") -> dict[str, Path]:
    """The subfolders (or files of a suffix) that are splits, by their split; ``also`` is one whatever its name."""
    splits: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() if suffix else path.is_dir():
            name = path.name[: len(path.name) - len(suffix)] if path.name.lower().endswith(suffix) else ""
            if _SPLIT.fullmatch(name) or (name and name == also):
                other = splits.setdefault(_split_name(name), path)
                if other is not path:
                    raise ProtosegError(f"expected one place of split {_split_name(name)}, got {other} and {path}")
    return splits


def _chosen(folders: Files, split: str, where: Path) -> Path:
    if _split_name(split) not in folders:
        text = f"{where}: expected a folder of split {split!r}, got {', '.join(path.name for path in folders.values())}"
        raise ProtosegError(f"{text}: add it, or choose data.train_split and data.val_split among these")
    return folders[_split_name(split)]


def _named(place: Path, chosen: str | None, names: Sequence[str]) -> list[Path]:
    """The subfolder that was chosen, or those with one of these names in any case."""
    if chosen is not None:
        return [place / chosen] if (place / chosen).is_dir() else []
    return sorted(path for path in place.iterdir() if path.name.lower() in names and path.is_dir())


def _one(place: Path, kind: str, chosen: str | None, names: Sequence[str]) -> Path:
    """The folder of images or of masks; of several the one with files that are read."""
    found = _named(place, chosen, names)
    found = [path for path in found if list_images(path, recursive=True)] if len(found) > 1 else found
    if len(found) == 1:
        return found[0]
    key = f"data.dataset.{kind}"
    there = [path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    offers = " or ".join(command(override(key, path.name)) for path in found) or f"{key}=NAME"
    text = f"{place}: expected one folder of {kind} ({chosen or ', '.join(names)})"
    raise ProtosegError(f"{text}, got {', '.join(path.name for path in found or there) or 'no folder'}: set {offers}")


def _two_kinds(where: Path, folders: Files, lists: Files) -> ProtosegError:
    folder, other = next(iter(folders.values())), next(iter(lists.values()), "images beside it")
    text = f"{where}: expected splits by subfolders or by lists, got the subfolder {folder.name} and {other}"
    return ProtosegError(f"{text}: keep one")


def _keys(known: Files, images: Path, lists: Files, split: str, rest: bool) -> list[str]:
    """The images of the list of ``split``, or with ``rest``, where there is none, those of no list; all are read."""
    if split not in lists and not rest:
        got = f"only {', '.join(path.name for path in lists.values())} in {images.parent}"
        remedy = f"add {split}.txt, or choose data.train_split and data.val_split among these"
        raise ProtosegError(f"expected a list of the images of split {split!r}, got {got}: {remedy}")
    wanted = []
    seen: dict[str, str] = {}
    for name, path in lists.items():
        for number, line in enumerate(pairing.read_lines(path), start=1):
            if not line.strip():
                continue
            where, key = f"{path}, line {number}", line.strip()
            with suppress(ValueError):  # a path of elsewhere
                key = key if key in known else stem_in(images.absolute(), images.absolute() / key)
            if key not in known:
                raise ProtosegError(f"{where}: expected the name of an image in {images}, got {line.strip()!r}")
            if key in seen:
                raise ProtosegError(f"{where}: expected every image once, got {key!r}, as in {seen[key]}: remove one")
            seen[key] = where
            wanted += [key] if name == split else []
    return wanted if split in lists else [key for key in known if key not in seen]


def _drawn(samples: list[FilePair], images: Path, split: str, val_share: float, seed: int) -> list[FilePair]:
    """The images with the smallest hashes are ``val``: adding images moves few of the others."""
    num_val = max(1, round(val_share * len(samples)))
    if split not in ("train", "val") or num_val >= len(samples):
        text = f"{images}: expected split train or val and at least 2 images, to draw the splits by chance"
        remedy = f"make subfolders images/{split}, masks/{split}, a list {split}.txt, or another data.dataset.val_share"
        raise ProtosegError(f"{text}, got {split!r} and {len(samples)} images, {num_val} of them val: {remedy}")
    hashes = {image: sha256(os.fsencode(f"{seed} {stem_in(images, image)}")).digest() for image, _ in samples}
    val = {*sorted(hashes, key=hashes.__getitem__)[:num_val]}
    return [sample for sample in samples if (sample[0] in val) == (split == "val")]


class ImageFolder(SegmentationDataset):
    """All images under ``root``, subfolders included, of any size, or one; every label pixel reads as ignored.

    ``label_space`` has the classes of the model that will see them, by ``reader``. Raises ProtosegError: no image.
    """

    def __init__(self, root: StrPath, label_space: LabelSpace, split: str = "predict", reader: Any = None) -> None:
        self.label_space, self.reader = label_space, reader or self.reader
        place = Path(root)
        paths = [place] if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES else []
        paths = self.reader.first([*paths, *(list_images(place, recursive=True) if place.is_dir() else [])])
        if not paths:
            state = "no such file in it" if place.is_dir() else "not an image" if place.is_file() else "no such folder"
            text = f"expected a folder with images ({', '.join(IMAGE_SUFFIXES)}), or one image, got {place.absolute()}"
            raise ProtosegError(f"{text}: {pairing.other_formats(place) or state}")
        super().__init__([(path, None) for path in paths], split)
