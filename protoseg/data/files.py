"""Decoding image and mask files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
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
    decode_picture,
    mask_doubt,
    open_picture,
    orientation,
    picture_size,
    turned,
)
from protoseg.data.label_spaces import UNKNOWN_ID, Ids, unknown_id
from protoseg.types import ProtosegError

Color = tuple[int, int, int]
# Where the ids of masks of several channels are: in one of them, or what a function makes of ``h w 3``, red first.
Channel = int | Callable[[NDArray[Any]], NDArray[Any]]

_PNG_DEPTH = 24  # where the header has the bits per channel
# 8-bit grey, palette (its indices), bilevel, and the 16-bit greys of different Pillow versions.
_ID_MODES = ("L", "P", "1", "I;16", "I;16B", "I")


def read_image(path: Path, turn: bool = True) -> NDArray[np.uint8]:
    """Decode an image to RGB, ``h w 3``; turned as EXIF says, or, without ``turn``, as it is stored.

    Raises:
        ProtosegError: the file cannot be read, is cut short, is not an image, or has too many pixels
            (``decoding.limit_pixels``).
    """
    data = read_bounded(path, "image")
    try:
        pixels = _decode_image(data)
    except (*FAILURES, cv2.error) as error:
        raise _unreadable(path, "image", error) from error
    return turned(pixels, orientation(data)) if turn else pixels


def _decode_image(data: bytes) -> NDArray[np.uint8]:
    if data.startswith(JPEG_START) and (pixels := decode_jpeg(data)) is not None:
        return pixels
    if not data.startswith((JPEG_START, PNG_START)):
        return decode_picture(data)
    # OpenCV is about twice as fast as Pillow, but some versions fill up a file that is cut short with grey and
    # say nothing (imread still does in 4.12). So Pillow looks first at a file that does not end as it should.
    if not _ends_properly(data):
        if data.startswith(PNG_START):
            raise ValueError("it is cut short")
        open_picture(data).load()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("it cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), dtype=np.uint8)


def read_label(
    path: Path, table: Ids, channel: Channel | None = None, colors: Mapping[Color, int] | None = None
) -> Ids:
    """Decode a mask of class ids and map it by ``table`` (see ``label_spaces.id_table``) to train ids, ``h w``.

    Args:
        path: a PNG file.
        table: id -> train id; its type is the label's.
        channel: the channel that holds the ids, 0 being the first in the file, of masks with several, or how the ids
            follow from all channels; None: one channel of grey, or a palette.
        colors: the id of each RGB colour, for masks that hold colours (8 bits a channel); None: there are none.

    Raises:
        ProtosegError: the file cannot be read, is no PNG, has too many pixels, holds other channels, or holds an id
            that ``table`` or a colour that ``colors`` does not know.
    """
    data = read_bounded(path, "mask")
    try:
        doubt = mask_doubt(data)
    except FAILURES as error:
        raise _unreadable(path, "mask", error) from error
    if doubt:
        raise doubtful_mask(path, doubt)
    ids = _decode_ids(path, data, colors) if channel is None else _decode_channel(path, data, channel)
    if ids.dtype != np.uint8 and (ids.min() < 0 or ids.max() >= len(table)):
        raise _unknown_ids(path, ids[(ids < 0) | (ids >= len(table))], table)
    label: Ids
    if table.dtype == np.uint8:
        ids = ids.astype(np.uint8, copy=False)
        label = np.asarray(cv2.LUT(ids, table), dtype=np.uint8)
    else:
        label = table.take(ids)
    unknown = label == unknown_id(table)
    if unknown.any():
        raise _unknown_ids(path, ids[unknown], table)
    return label


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


def _decode_ids(path: Path, data: bytes, colors: Mapping[Color, int] | None) -> NDArray[Any]:
    """The ids of a grey mask, or the indices of a palette: Pillow, unlike OpenCV, does not turn them into colours."""
    try:
        with open_picture(data) as file:
            mode = file.mode
            pixels = np.asarray(file.convert("L") if mode == "1" else file)
    except FAILURES as error:
        raise _unreadable(path, "mask", error) from error
    if mode in _ID_MODES:
        return pixels
    deep = data.startswith(PNG_START) and data[_PNG_DEPTH] == 16  # Pillow would give their high bytes
    if colors is None or mode not in ("RGB", "RGBA") or deep:
        raise ProtosegError(
            f"mask {path}: expected one channel of class ids (grey or palette PNG)"
            f"{'' if colors is None else ' or RGB colours of 8 bits'}, got {'16-bit ' if deep else ''}{mode} colours: "
            f"{'convert the colours to ids first' if colors is None else 'export the mask again'}"
        )
    if mode == "RGBA" and pixels[..., 3].min() < 255:
        raise ProtosegError(f"mask {path}: expected opaque colours, got transparent pixels: fill them with a colour")
    return _ids_of_colors(path, pixels, colors)


def _ids_of_colors(path: Path, pixels: NDArray[np.uint8], colors: Mapping[Color, int]) -> NDArray[np.uint8]:
    packed = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF
    ids = _color_table(tuple(colors.items()))[packed]
    unknown = packed[ids == UNKNOWN_ID]
    if unknown.size:
        found = np.unique(unknown)
        shown = ", ".join(f"({key & 255}, {key >> 8 & 255}, {key >> 16})" for key in found[:5].tolist())
        raise ProtosegError(
            f"mask {path}: expected the colours of the classes, got {len(found)} other(s) on {unknown.size} pixels: "
            f"{shown}{', ...' if len(found) > 5 else ''}: add them to the file of classes (void: colours that count "
            "nowhere), or export the mask again without smooth edges"
        )
    return ids


@lru_cache(maxsize=2)
def _color_table(colors: tuple[tuple[Color, int], ...]) -> NDArray[np.uint8]:
    """The id of every colour, packed with red in the low byte; 16 MB, but much faster than a search."""
    table = np.full(1 << 24, UNKNOWN_ID, dtype=np.uint8)
    for (red, green, blue), file_id in colors:
        table[red | green << 8 | blue << 16] = file_id
    return table


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


def doubtful_mask(path: Path, doubt: str) -> ProtosegError:
    """The error of a mask whose numbers may not be the ids that were drawn; ``doubt`` as of ``mask_doubt``."""
    return ProtosegError(
        f"mask {path}: expected ids as they were drawn, got {doubt}: export the mask again as PNG from where it was "
        "drawn (converted to PNG it stays damaged)"
    )


def _unreadable(path: Path, kind: str, reason: object) -> ProtosegError:
    if isinstance(reason, UnidentifiedImageError):
        reason = "it is no image"  # Pillow names the buffer, not the file
    return ProtosegError(
        f"{kind} {path}: expected a complete image file, got one that cannot be read ({reason}): "
        "copy the file again, or move it and its partner elsewhere"
    )


def _unknown_ids(path: Path, ids: NDArray[np.generic], table: Ids) -> ProtosegError:
    got = ", ".join(str(i) for i in np.unique(ids)[:8])
    return ProtosegError(
        f"mask {path}: expected class ids {_ranges(np.flatnonzero(table != unknown_id(table)))}, got {got}: "
        "correct the mask, or choose the data set whose ids it holds"
    )


def _ranges(ids: NDArray[np.intp]) -> str:
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
