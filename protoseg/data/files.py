"""Finding, pairing and decoding image and mask files, with errors that name the file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from protoseg.data.decoding import (
    FAILURES,
    JPEG_END,
    JPEG_START,
    PNG_END,
    PNG_START,
    check_pixels,
    check_regular,
    decode_jpeg,
    open_picture,
    picture_size,
)
from protoseg.data.faults import fault
from protoseg.data.label_spaces import Ids
from protoseg.data.masks import Mask, as_mask, labels_of_ids
from protoseg.types import ProtosegError

# Where the ids of masks of several channels are: in one of them, or what a function makes of ``h w 3``, red first.
Channel = int | Callable[[NDArray[Any]], NDArray[Any]]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Formats that people have images in, to be told of and not to be read.
_OTHER_SUFFIXES = (".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".dng")
_WANTED = f"images ({', '.join(IMAGE_SUFFIXES)})"


def list_images(folder: Path, recursive: bool = False, skip: str | None = None) -> list[Path]:
    """The .png, .jpg and .jpeg files (any case) in ``folder``, sorted, without hidden ones such as ``._x.png``.

    Subfolders whose names begin with ``skip`` are not looked into.

    Links to files and folders are followed, so that a tree may be put together from parts.

    Raises:
        ProtosegError: a link leads back to a folder that it lies in.
    """
    return sorted(p for p in _files(folder, recursive, skip) if p.suffix.lower() in IMAGE_SUFFIXES)


def other_formats(place: Path) -> str:
    """The images under a folder that are not read because of their format, counted and named; "" if there are none."""
    files = sorted(_files(place, True, None)) if place.is_dir() else [place]
    found = [path for path in files if path.suffix.lower() in _OTHER_SUFFIXES and path.exists()]
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

    Raises:
        ProtosegError: two files have the same key, so that a mask would have two images.
    """
    files: dict[str, Path] = {}
    for path in paths:
        other = files.setdefault(unicodedata.normalize("NFC", key(path)), path)
        if other is not path:
            fault(f"expected one file per name, got {other} and {path}: remove one of them")
    return files


def by_stem(folder: Path, end: str, skip: str | None = None) -> dict[str, Path]:
    """The images under ``folder``, subfolders included, whose names end in ``end``, by their path there without it.

    ``.PNG`` ends as ``.png`` does; ``skip`` as in ``list_images``.
    """
    found = (path for path in list_images(folder, recursive=True, skip=skip) if path.name.lower().endswith(end.lower()))
    return by_key(found, lambda path: path.relative_to(folder).as_posix()[: -len(end)])


def pair(images: Mapping[str, Path], masks: Mapping[str, Path] | None, where: str) -> list[tuple[Path, Path | None]]:
    """Image and mask of every key, in key order; without ``masks`` the images alone.

    Raises:
        ProtosegError: there is no image at all, an image without a mask, a mask without an image, or a mask that is
            a JPEG.
    """
    if not images and not masks:
        wanted = _WANTED + ("" if masks is None else " and PNG masks")
        raise ProtosegError(f"{where}: expected {wanted}, got none")
    if masks is None:
        return [(images[key], None) for key in sorted(images)]
    for what, missing in (
        ("image(s) without mask", sorted(images.keys() - masks.keys())),
        ("mask(s) without image", sorted(masks.keys() - images.keys())),
    ):
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            expected = f"{where}: expected one PNG mask per image, got"
            remedy = f"Add the missing files or remove these; read are {_WANTED}"
            fault(
                f"{expected} {len(missing)} {what}: {names}. {remedy}",
                [f"{expected} {what.replace('(s)', '')}: {name}. {remedy}" for name in missing],
            )
    pairs: list[tuple[Path, Path | None]] = []
    for key in sorted(images.keys() & masks.keys()):
        if masks[key].suffix.lower() in (".jpg", ".jpeg"):
            fault(str(_lossy(masks[key])))
        else:
            pairs.append((images[key], masks[key]))
    return pairs


def stems_of_masks(folder: Path, images: Mapping[str, Path], recursive: bool = False) -> dict[str, Path]:
    """The PNG masks in ``folder`` by their path there without suffix; JPEGs only where an image has no other mask.

    ``pair`` refuses these with the reason; pictures of masks beside the masks are left out.
    """
    found = list_images(folder, recursive)
    masks = by_key((p for p in found if p.suffix.lower() == ".png"), lambda p: stem_in(folder, p))
    for path in found:
        if stem_in(folder, path) in images:
            masks.setdefault(stem_in(folder, path), path)
    return masks


def stem_in(folder: Path, path: Path) -> str:
    """Path of a file in ``folder``, without its suffix."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to RGB, ``h w 3``.

    Raises:
        ProtosegError: the file cannot be read, is cut short, is not an image, or has too many pixels
            (``decoding.limit_pixels``).
    """
    data = read_bounded(path, "image")
    try:
        if data.startswith(JPEG_START) and (pixels := decode_jpeg(data)) is not None:
            return pixels
        # OpenCV is about twice as fast as Pillow, but some versions fill up a file that is cut short with grey and
        # say nothing (imread still does in 4.12). So Pillow looks first at a file that does not end as it should.
        if not _ends_properly(data):
            if data.startswith(PNG_START):
                raise ValueError("it is cut short")
            open_picture(data).load()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (*FAILURES, cv2.error) as error:
        raise _unreadable(path, "image", error) from error
    if image is None:
        raise _unreadable(path, "image", "it cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), dtype=np.uint8)


def read_label(path: Path, table: Ids, channel: Channel | None = None) -> Ids:
    """Decode a mask of class ids and map it by ``table`` (see ``label_spaces.id_table``) to train ids, ``h w``.

    Args:
        path: a PNG file.
        table: id -> train id; its type is the label's.
        channel: the channel that holds the ids, 0 being the first in the file, of masks with several, or how the ids
            follow from all channels; None: one channel of grey, or a palette.

    Raises:
        ProtosegError: the file cannot be read, is no PNG, has too many pixels, holds other channels, or holds an id
            that ``table`` does not know.
    """
    if channel is not None:
        return labels_of_ids(path, _decode_channel(path, _mask_bytes(path), channel), table)
    mask = read_mask(path)
    if mask.kind == "colour" or (mask.clear is not None and mask.kind != "palette"):
        raise ProtosegError(
            f"mask {path}: expected one channel of class ids (grey or palette PNG), got RGB colours or transparent "
            "pixels: convert the colours to ids first"
        )
    return labels_of_ids(path, mask.values, table)


def read_mask(path: Path) -> Mask:
    """Decode a mask as it is; raises ProtosegError where it cannot be read, is a JPEG, or has other channels.

    By Pillow, which unlike OpenCV does not turn a palette's indices into colours.
    """
    data = _mask_bytes(path)
    try:
        with open_picture(data) as file:
            mask, mode = as_mask(file, data), file.mode
    except FAILURES as error:
        raise _unreadable(path, "mask", error) from error
    if mask is None:
        raise ProtosegError(
            f"mask {path}: expected class ids in one channel (grey or palette PNG) or RGB colours of 8 bits, got "
            f"{mode} of other bits: export the mask again"
        )
    return mask


def _mask_bytes(path: Path) -> bytes:
    data = read_bounded(path, "mask")
    if data.startswith(JPEG_START):
        raise _lossy(path)
    return data


def read_bounded(path: Path, kind: str) -> bytes:
    """The bytes of a file; raises ProtosegError if it cannot be read or has too many pixels to be decoded."""
    try:
        check_regular(path)
        data = path.read_bytes()
        size = picture_size(data)
    except FAILURES as error:
        raise _unreadable(path, kind, error) from error
    check_pixels(f"{kind} {path}", *size)
    return data


def _decode_channel(path: Path, data: bytes, channel: Channel) -> NDArray[Any]:
    """The ids of a colour PNG of 8 or 16 bits. Pillow keeps only the high byte of 16-bit colours, OpenCV both."""
    if not _ends_properly(data):
        raise _unreadable(path, "mask", "it is cut short, or no PNG file")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _unreadable(path, "mask", error) from error
    if image is None:
        raise _unreadable(path, "mask", "it cannot be decoded")
    if image.ndim != 3:
        raise ProtosegError(
            f"mask {path}: expected class ids in {'the channels' if callable(channel) else f'channel {channel}'} of a "
            "colour PNG, as in the data set's release, got one channel: extract the mask again"
        )
    pixels = np.asarray(image)[..., 2::-1]  # OpenCV gives blue, green, red
    return channel(pixels) if callable(channel) else pixels[..., channel]


def _ends_properly(data: bytes) -> bool:
    if data.startswith(JPEG_START):
        return data.endswith(JPEG_END)
    at = len(PNG_START) if data.startswith(PNG_START) else len(data)
    while at < len(data):  # chunk by chunk: OpenCV makes room for as much as a damaged length asks for
        if data[at + 4 : at + 4 + len(PNG_END)] == PNG_END:
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _lossy(path: Path) -> ProtosegError:
    return ProtosegError(
        f"mask {path}: expected a PNG file, got a JPEG, whose compression changes class ids, most of all at the edges: "
        "export the mask again as PNG (a JPEG converted to PNG stays damaged)"
    )


def _unreadable(path: Path, kind: str, reason: object) -> ProtosegError:
    if isinstance(reason, UnidentifiedImageError):
        reason = "it is no image"  # Pillow names the buffer, not the file
    return ProtosegError(
        f"{kind} {path}: expected a complete PNG or JPEG file, got one that cannot be read ({reason}): "
        "copy the file again or remove it together with its partner"
    )
