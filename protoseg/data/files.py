"""Finding, pairing and decoding image and mask files, with errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.label_spaces import UNKNOWN_ID
from protoseg.types import ProtosegError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# 8-bit grey, palette (its indices), bilevel, and the 16-bit greys of different Pillow versions.
_ID_MODES = ("L", "P", "1", "I;16", "I;16B", "I")


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The .png, .jpg and .jpeg files (any case) in ``folder``, sorted, without hidden ones such as ``._x.png``."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def by_key(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    """Index ``paths`` by ``key``.

    Raises:
        ProtosegError: two files have the same key, so that a mask would have two images.
    """
    files: dict[str, Path] = {}
    for path in paths:
        other = files.setdefault(key(path), path)
        if other is not path:
            raise ProtosegError(f"expected one file per name, got {other} and {path}: remove one of them")
    return files


def by_stem(folder: Path, end: str) -> dict[str, Path]:
    """The images under ``folder``, subfolders included, whose names end in ``end``, by their path there without it."""
    found = (path for path in list_images(folder, recursive=True) if path.name.endswith(end))
    return by_key(found, lambda path: path.relative_to(folder).as_posix()[: -len(end)])


def pair(images: Mapping[str, Path], masks: Mapping[str, Path] | None, where: str) -> list[tuple[Path, Path | None]]:
    """Image and mask of every key, in key order; without ``masks`` the images alone.

    Raises:
        ProtosegError: there is no image at all, an image without a mask, or a mask without an image.
    """
    if not images and not masks:
        wanted = f"images ({', '.join(IMAGE_SUFFIXES)})" + ("" if masks is None else " and PNG masks")
        raise ProtosegError(f"{where}: expected {wanted}, got none")
    if masks is None:
        return [(images[key], None) for key in sorted(images)]
    for what, missing in (
        ("image(s) without mask", sorted(images.keys() - masks.keys())),
        ("mask(s) without image", sorted(masks.keys() - images.keys())),
    ):
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ProtosegError(
                f"{where}: expected one PNG mask per image, got {len(missing)} {what}: {names}. "
                "Add the missing files or remove these"
            )
    return [(images[key], masks[key]) for key in sorted(images)]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to RGB, ``h w 3``.

    Raises:
        ProtosegError: the file cannot be read, is cut short, or is not an image.
    """
    try:
        data = path.read_bytes()
        # OpenCV is about twice as fast as Pillow, but some versions fill up a file that is cut short with grey and
        # say nothing (imread still does in 4.12). So Pillow looks first at a file that does not end as it should.
        if not _ends_properly(data):
            Image.open(io.BytesIO(data)).load()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, SyntaxError, ValueError, cv2.error) as error:
        raise _unreadable(path, "image", error) from error
    if image is None:
        raise _unreadable(path, "image", "it cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), dtype=np.uint8)


def read_label(path: Path, table: NDArray[np.uint8], channel: int | None = None) -> NDArray[np.uint8]:
    """Decode a mask of class ids and map it by ``table`` (see ``label_spaces.id_table``) to train ids, ``h w``.

    Args:
        path: a PNG file.
        table: 256 entries, id -> train id.
        channel: the channel that holds the ids, 0 being the first in the file, of masks with several; None: one
            channel of grey, or a palette.

    Raises:
        ProtosegError: the file cannot be read, holds other channels, or holds an id that ``table`` does not know.
    """
    ids = _read_ids(path) if channel is None else _read_channel(path, channel)
    if ids.dtype != np.uint8 and (ids.min() < 0 or ids.max() > 255):
        raise _unknown_ids(path, ids[(ids < 0) | (ids > 255)], table)
    ids = ids.astype(np.uint8, copy=False)
    label = np.asarray(cv2.LUT(ids, table), dtype=np.uint8)
    unknown = label == UNKNOWN_ID
    if unknown.any():
        raise _unknown_ids(path, ids[unknown], table)
    return label


def _read_ids(path: Path) -> NDArray[Any]:
    """The ids of a grey mask, or the indices of a palette: Pillow, unlike OpenCV, does not turn them into colours."""
    try:
        with Image.open(path) as file:
            mode = file.mode
            ids = np.asarray(file.convert("L") if mode == "1" else file)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, "mask", error) from error
    if mode not in _ID_MODES:
        raise ProtosegError(
            f"mask {path}: expected one channel of class ids (grey or palette PNG), got {mode} colours: "
            "convert the colours to ids first"
        )
    return ids


def _read_channel(path: Path, channel: int) -> NDArray[Any]:
    """One channel of a colour PNG of 8 or 16 bits. Pillow keeps only the high byte of 16-bit colours, OpenCV both."""
    try:
        data = path.read_bytes()
        if not _ends_properly(data):
            raise _unreadable(path, "mask", "it is cut short, or no PNG file")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise _unreadable(path, "mask", error) from error
    if image is None:
        raise _unreadable(path, "mask", "it cannot be decoded")
    if image.ndim != 3:
        raise ProtosegError(
            f"mask {path}: expected class ids in channel {channel} of a colour PNG, as in the data set's release, got "
            "one channel: extract the mask again"
        )
    return np.asarray(image)[..., 2 - channel]  # OpenCV gives blue, green, red


def _ends_properly(data: bytes) -> bool:
    if data.startswith(_JPEG_START):
        return data.endswith(_JPEG_END)
    return data.startswith(_PNG_START) and data.endswith(_PNG_END)


def _unreadable(path: Path, kind: str, reason: object) -> ProtosegError:
    return ProtosegError(
        f"{kind} {path}: expected a complete PNG or JPEG file, got one that cannot be read ({reason}): "
        "copy the file again or remove it together with its partner"
    )


def _unknown_ids(path: Path, ids: NDArray[np.generic], table: NDArray[np.uint8]) -> ProtosegError:
    got = ", ".join(str(i) for i in np.unique(ids)[:8])
    return ProtosegError(
        f"mask {path}: expected class ids {_ranges(np.flatnonzero(table != UNKNOWN_ID))}, got {got}: "
        "correct the mask, or choose the data set whose ids it holds"
    )


def _ranges(ids: NDArray[np.intp]) -> str:
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
