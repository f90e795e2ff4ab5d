"""Finding image and mask files, and which mask belongs to which image."""

import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from protoseg.data.decoding import LOSSY
from protoseg.data.files import doubtful_mask
from protoseg.text import command, override
from protoseg.types import ProtosegError, told, yaml_beside

_JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (".png", *_JPEG_SUFFIXES, ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".npy")
NAMES: dict[str, Any] = yaml_beside(__file__, "names.yaml")
_WANTED = f"images ({', '.join(IMAGE_SUFFIXES)})"
_PROBES, _ENDS = 16, 32  # images looked at, and names compared with each, to find how masks are called
_BORDER = re.compile(r"[^0-9A-Za-z]|(?<=[0-9])(?=[A-Za-z])")
_WORDS = "|".join(NAMES["mask_words"])
_MASK_NAME = re.compile(rf"^(?:{_WORDS})(?![a-z])|(?<![a-z])(?:{_WORDS})$|(?-i:_L)$", re.IGNORECASE)
Ends = tuple[str, str]
Files = Mapping[str, Path]
FilePair = tuple[Path, Path | None]  # image and mask


def list_images(
    folder: Path, recursive: bool = False, skip: str | None = None, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """The files of ``suffixes`` (any case) in ``folder``, sorted, without hidden ones such as ``._x.png``.

    Subfolders whose names begin with ``skip`` are not looked into. Links are followed, so that a tree may be put
    together from parts. Raises ProtosegError: a link leads back to a folder that it lies in.
    """
    return sorted(p for p in _files(folder, recursive, skip) if p.suffix.lower() in suffixes)


def other_formats(place: Path) -> str:
    """The images under a folder that are not read because of their format, counted and named; "" if there are none."""
    files = sorted(_files(place, True, None)) if place.is_dir() else [place]
    found = [path for path in files if path.name.lower().endswith(tuple(NAMES["other_suffixes"])) and path.exists()]
    shown = ", ".join(path.name for path in found[:5]) + (", ..." if len(found) > 5 else "")
    return f"{len(found)} image(s) of formats that are not read ({shown}): convert them to PNG" if found else ""


def _files(folder: Path, recursive: bool, skip: str | None, above: tuple[str, ...] = ()) -> Iterator[Path]:
    # Not rglob, which follows links to folders in no Python or in some only.
    real = os.path.realpath(folder)
    if real in above:
        raise ProtosegError(f"expected folders that end, got {folder}, a link to a folder above it: remove the link")
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if not os.path.isdir(entry.path):  # the entry's own method fails at a link to itself
            yield Path(entry.path)
        elif recursive and not (skip and entry.name.startswith(skip)):
            yield from _files(Path(entry.path), recursive, skip, (*above, real))


def by_key(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    """Index ``paths`` by ``key``; one name in two Unicode forms (macOS decomposes accents) is one key.

    Raises ProtosegError: two files have the same key, so that a mask would have two images.
    """
    files: dict[str, Path] = {}
    for path in paths:
        other = files.setdefault(unicodedata.normalize("NFC", key(path)), path)
        if other is not path:
            fault(f"expected one file per name, got {other} and {path}: move one of them elsewhere")
    return files


def by_stem(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Files in ``folder`` by their path there without suffix; raises as ``by_key``."""
    return by_key(paths, partial(stem_in, folder))


def pair(images: Files, masks: Files | None, where: str, folders: Sequence[Path] = ()) -> list[FilePair]:
    """Image and mask of every key, in key order; without ``masks`` the images alone.

    ``where`` begins the messages; ``folders`` are of the images and of the masks, to name what is there instead of a
    file that is missing. Raises ProtosegError: no image at all, an image or a mask without the other, a JPEG as a mask.
    """
    if not images and not masks:
        got = "; ".join(filter(None, map(other_formats, folders))) or "none"
        raise ProtosegError(f"{where}: expected {_WANTED}{'' if masks is None else ' and masks'}, got {got}")
    if masks is None:
        return [(images[key], None) for key in sorted(images)]
    expected = f"{where}: expected one mask per image, got"
    remedy = f"Add the missing files, or move these elsewhere; read are {_WANTED}"
    kinds = (("image(s) without mask", images, masks), ("mask(s) without image", masks, images))
    for (what, here, there), beside in zip(kinds, folders[::-1] or (None, None), strict=True):
        if missing := sorted(here.keys() - there.keys()):
            # Names of a few files that begin as the missing one: its partner in another form.
            others = sorted(stem_in(beside, p) + p.suffix for p in _files(beside, True, None)) if beside else []
            near = {key: [os.path.basename(name) for name in _beginning(others, key, 3)] for key in missing}
            each = [f"{key} (beside {', '.join(near[key])})" if near[key] else key for key in missing]
            names = ", ".join(each[:5]) + (", ..." if len(each) > 5 else "")
            fault(
                f"{expected} {len(missing)} {what}: {names}. {remedy}",
                [f"{expected} {what.replace('(s)', '')}: {name}. {remedy}" for name in each],
            )
    both = sorted(images.keys() & masks.keys())
    jpegs = {key for key in both if masks[key].suffix.lower() in _JPEG_SUFFIXES}
    for key in sorted(jpegs):
        fault(str(doubtful_mask(masks[key], f"a JPEG, {LOSSY}")))
    return [(images[key], masks[key]) for key in both if key not in jpegs]


def _beginning(ordered: Sequence[str], start: str, most: int) -> list[str]:
    """The first names of a sorted list that begin with ``start``, no digit after it: ``a1`` does not begin ``a10``."""
    before = islice(ordered, bisect_left(ordered, start), bisect_left(ordered, f"{start}0"))
    after = islice(ordered, bisect_left(ordered, f"{start}:"), None)
    return [*islice(chain(before, takewhile(lambda name: name.startswith(start), after)), most)]


def stems_of_masks(folder: Path, paths: Sequence[Path], images: Files) -> dict[str, Path]:
    """The masks in ``folder`` by stem; JPEGs, which ``pair`` refuses, only where an image has no other mask."""
    jpegs = {path for path in paths if path.suffix.lower() in _JPEG_SUFFIXES}
    masks = by_stem(folder, (path for path in paths if path not in jpegs))
    return {stem_in(folder, path): path for path in jpegs if stem_in(folder, path) in images} | masks


def apart(paths: Sequence[Path], suffix: str | None) -> tuple[list[Path], list[Path]]:
    """Images and masks that lie in one folder: masks end or begin in ``suffix``, or else in a word for them.

    That is as in ``1_mask.png`` and ``gt-1.png``; where none does, they are the other file beside a JPEG of the name.
    """

    def named_so(path: Path) -> bool:
        if suffix:
            return path.stem.endswith(suffix) or path.stem.startswith(suffix)
        return suffix is None and bool(_MASK_NAME.search(path.stem))

    masks = {*filter(named_so, paths)}
    if not masks:
        photos = {path.with_suffix("") for path in paths if path.suffix.lower() in _JPEG_SUFFIXES}
        masks = {p for p in paths if p.suffix.lower() not in _JPEG_SUFFIXES and p.with_suffix("") in photos}
    return [path for path in paths if path not in masks], [path for path in paths if path in masks]


class Naming(NamedTuple):
    """The constant ends of the names of images, of their masks and of all kinds of masks; read from behind if -1."""

    image: str = ""
    mask: str = ""
    kinds: tuple[str, ...] = ("",)
    step: int = 1

    def is_mask(self, path: Path) -> bool:
        """Whether a mask is of this kind, by its name."""
        ends = [end for end in self.kinds if path.stem[:: self.step].endswith(end)]
        return max(ends, key=len, default=None) == self.mask

    def __str__(self) -> str:
        image, mask = (f"NAME{end}" if self.step > 0 else f"{end[::-1]}NAME" for end in (self.image, self.mask))
        return f"the mask of {image} is {mask}" if self.image or self.mask else ""


def by_image(
    images: Files, masks: Files, where: str, suffix: str | None = None, key: str = "data.dataset.mask_suffix"
) -> tuple[dict[str, Path], Naming]:
    """Masks by the keys of their images, where all names are alike but for a constant end, or beginning.

    ``1_image`` belongs to ``1_mask``, ``img_1`` to ``gt_1``, if most images have such a partner. Masks that stay over
    keep their keys, which are paths without suffix. ``where`` begins the messages; ``suffix`` is the end or beginning
    of the masks to read, of several kinds, and ``key`` what sets it, if anything does. Raises ProtosegError: each image
    has several masks and ``suffix`` is not what one kind of these has.
    """
    kinds: list[Ends] = []
    offers: list[str] = []
    for step in (1, -1) if images and masks else ():
        turned = {_turned(image, step): image for image in images}
        others = {_turned(mask, step): mask for mask in masks}
        counts = _ends(turned.keys(), others.keys())
        kinds = [ends for ends, count in counts.items() if 2 * count > len(images)]
        chosen = kinds if suffix is None else [ends for ends in counts if ends[1] == suffix[::step]][:1]
        if len(chosen) == 1:
            naming = Naming(*chosen[0], tuple({mask for _, mask in {*kinds, *chosen}}), step)
            taken = {others.get(partner) for ends in {*kinds, *chosen} for partner in _partners(turned, ends).values()}
            left = {mask: path for mask, path in masks.items() if mask not in taken and mask not in images}
            found = {turned[i]: masks[others[m]] for i, m in _partners(turned, chosen[0]).items() if m in others}
            return left | found, naming
        offers += [end[::step] for _, end in sorted(kinds or ([] if suffix is None else counts))]
        if kinds and suffix is None:
            break
    if (suffix is None and not kinds) or not (images and masks):
        return dict(masks), Naming("", suffix or "", (suffix or "",))
    got = f"{len(kinds)} kinds of names" if suffix is None else f"mask_suffix={suffix!r}"
    settings = " or ".join(command(override(key, end)) for end in dict.fromkeys(offers))
    remedy = f"set {settings}" if key else "keep one kind of masks in a folder of its own"
    raise ProtosegError(f"{where}: expected one mask per image, got {got}: {remedy}")


def _ends(images: Collection[str], masks: Collection[str]) -> dict[Ends, int]:
    """Pairs of ends that make masks' names of images' names, and how many masks each finds, most first."""
    ordered, found = sorted(masks), {("", "")}
    for image in islice(images, 0, None, max(1, len(images) // _PROBES)):
        name = image.rpartition("/")[2]
        cuts = [m.start() - len(name) for m in _BORDER.finditer(name) if m.start()]
        for start in [image, *(image[:cut] for cut in reversed(cuts))]:
            rests = {mask[len(start) :] for mask in _beginning(ordered, start, _ENDS)}
            if rests := {rest for rest in rests if "/" not in rest}:
                found |= {(image[len(start) :], rest) for rest in rests}
                break
    counts = {ends: sum(mask in masks for mask in _partners(images, ends).values()) for ends in found}
    return {ends: count for ends, count in sorted(counts.items(), key=lambda item: -item[1]) if count}


def _partners(images: Iterable[str], ends: Ends) -> dict[str, str]:
    """By the images that end so, the names that their masks then have."""
    return {image: image[: len(image) - len(ends[0])] + ends[1] for image in images if image.endswith(ends[0])}


def _turned(key: str, step: int) -> str:
    """A path with the letters of its last part from behind where ``step`` is -1."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name[::step]


def stem_in(folder: Path, path: Path) -> str:
    """Path of a file in ``folder``, without its suffix."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def read_lines(path: Path) -> list[str]:
    """The lines of a list of a split's images; raises ProtosegError where there is no such file, or it is no text."""
    text = f"{path}: expected the list of a split's images, a text file in UTF-8"
    with told(lambda error: f"{text}, got none that can be read ({error})", OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8-sig").split("\n")


_collected: ContextVar[list[str] | None] = ContextVar("faults", default=None)


def fault(message: str, each: Iterable[str] | None = None) -> None:
    """Raise ProtosegError, or inside ``collect_faults`` keep ``message`` (or ``each``, one per file), and go on."""
    found = _collected.get()
    if found is None:
        raise ProtosegError(message)
    found.extend([message] if each is None else each)


@contextmanager
def collect_faults() -> Iterator[list[str]]:
    """Inside, ``fault`` adds its messages to the list that this gives."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
