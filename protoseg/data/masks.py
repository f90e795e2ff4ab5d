"""What a mask file holds, and the labels that its values or their colours stand for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.decoding import PNG_DEPTH, PNG_START
from protoseg.data.label_spaces import Ids, unknown_id
from protoseg.types import ProtosegError

Color = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_MAX_SHOWN = 256  # values of one mask that are told apart; a photograph has more


class Mask(NamedTuple):
    """A mask as its file has it."""

    kind: str  # ``1-bit``, ``2-bit``, ``4-bit``, ``grey`` (8 bits), ``16-bit``, ``palette`` or ``colour``
    values: NDArray[Any]  # ``h w``: samples or indices as they are stored; colours: ``h w 3``, red first
    colors: NDArray[np.int64] | None = None  # ``n 3``: in which a viewer shows each value; not of colours or 16 bits
    clear: NDArray[np.bool_] | None = None  # ``h w``: where it is fully transparent; None: nowhere

    @property
    def ids(self) -> NDArray[Any] | None:
        """``h w``: the values, of colours those copied into all three channels; None where these differ."""
        if self.kind != "colour":
            return self.values
        first = self.values[..., 0]
        return first if all(np.array_equal(first, self.values[..., i]) for i in (1, 2)) else None


class Used(NamedTuple):
    """The values in use in a mask, transparent pixels left out: as ids, and as colours; None where they are not."""

    kind: str
    ids: tuple[int, ...] | None
    colors: tuple[Color, ...] | None


def as_mask(file: Image.Image, data: bytes) -> Mask | None:
    """What Pillow's image holds, or None where that is nothing for a mask; raises ``decoding.FAILURES``.

    The image is not decoded yet. ``data`` are its bytes: Pillow scales grey levels of 2 and 4 bits up, and keeps the
    high bytes of colours of 16.
    """
    depth = data[PNG_DEPTH] if data.startswith(PNG_START) else 8
    mode, pixels = file.mode, np.asarray(file)
    clear = None
    if "transparency" in file.info and mode in ("P", "RGB"):
        clear = np.asarray(file.convert("RGBA"))[..., 3] == 0
    if mode == "P":
        colors = np.full((256, 3), -1)
        palette = np.reshape(file.getpalette() or [], (-1, 3))
        colors[: len(palette)] = palette
        return Mask("palette", pixels, colors, clear)
    if mode in ("I;16", "I;16B", "I"):
        return Mask("16-bit", pixels)
    if depth > 8 or mode not in ("1", "L", "LA", "RGB", "RGBA"):
        return None
    if mode in ("LA", "RGBA"):
        clear, pixels = pixels[..., -1] == 0, pixels[..., :-1]
    if mode in ("RGB", "RGBA"):
        return Mask("colour", np.ascontiguousarray(pixels), None, clear)
    bits = 1 if mode == "1" else depth
    levels = np.arange(1 << bits) * (255 // ((1 << bits) - 1))
    values = pixels.reshape(pixels.shape[:2]).astype(np.uint8, copy=False)
    values = values if mode == "1" or bits == 8 else values // np.uint8(levels[1])
    return Mask("grey" if bits == 8 else f"{bits}-bit", values, levels[:, None].repeat(3, 1), clear)


def used_values(mask: Mask) -> Used:
    """The ids and colours that a mask uses, sorted."""
    ids, shown = mask.ids, None if mask.clear is None else ~mask.clear
    if ids is not None:
        found = _unique(ids if shown is None else ids[shown])
        grey = np.stack([found] * 3, 1) if mask.kind == "colour" else None
        colors = grey if mask.colors is None else mask.colors[found]
        return Used(mask.kind, tuple(found.tolist()), None if colors is None else tuple(map(tuple, colors.tolist())))
    packed = np.unique(_packed(mask.values) if shown is None else _packed(mask.values)[shown])[:_MAX_SHOWN]
    return Used(mask.kind, None, tuple((int(k & 255), int(k >> 8 & 255), int(k >> 16)) for k in packed))


def labels_of_ids(path: Path, ids: NDArray[Any], table: Ids, clear: NDArray[np.bool_] | None = None) -> Ids:
    """``table`` at each id, ``h w``; raises ProtosegError: an id that it does not know, except where transparent."""
    if ids.dtype != np.uint8 and (ids.min() < 0 or ids.max() >= len(table)):
        raise _unknown_ids(path, ids[(ids < 0) | (ids >= len(table))], table)
    table = table[:256] if ids.dtype == np.uint8 else table
    small = ids.dtype == table.dtype == np.uint8 and len(table) == 256
    label: Ids = np.asarray(cv2.LUT(ids, table), dtype=np.uint8) if small else table.take(ids)
    unknown = label == unknown_id(table)
    if unknown.any() and (clear is None or (unknown := unknown & ~clear).any()):
        raise _unknown_ids(path, ids[unknown], table)
    return label


def labels_of_colors(path: Path, mask: Mask, colors: Mapping[Color, int], dtype: Any) -> Ids:
    """The label of each pixel's colour, ``h w`` of ``dtype``; raises ProtosegError for others, except transparent."""
    unknown = unknown_id(np.empty(0, dtype))
    if mask.colors is None:
        label = _color_table(tuple(colors.items()), np.dtype(dtype))[_packed(mask.values)]
    else:
        lut = np.array([colors.get((r, g, b), unknown) for r, g, b in mask.colors.tolist()], dtype)
        label = lut[mask.values]
    bad = (label == unknown) & (True if mask.clear is None else ~mask.clear)
    if bad.any():
        found = np.unique(mask.values[bad], axis=0)
        found = found if mask.colors is None else mask.colors[found]
        shown = ", ".join(str(tuple(color)) for color in found[:5].tolist())
        raise ProtosegError(
            f"mask {path}: expected the colours of the classes, got {len(found)} other(s) on {bad.sum()} pixels: "
            f"{shown}{', ...' if len(found) > 5 else ''}: add them to the file of classes (void: what counts nowhere), "
            "or export the mask again without smooth edges"
        )
    return label


def _unique(ids: NDArray[Any]) -> NDArray[np.intp]:
    if ids.dtype not in (np.uint8, np.uint16):
        return np.unique(ids)
    return np.flatnonzero(cv2.calcHist([np.ascontiguousarray(ids)], [0], None, [65536], [0, 65536]))


def _packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Red in the low byte, then green and blue."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF)


@lru_cache(maxsize=2)
def _color_table(colors: tuple[tuple[Color, int], ...], dtype: Any) -> Ids:
    """The label of every colour, packed; 16 or 32 MB, but much faster than a search."""
    table: Ids = np.full(1 << 24, unknown_id(np.empty(0, dtype)), dtype)
    for (red, green, blue), label in colors:
        table[red | green << 8 | blue << 16] = label
    return table


def _unknown_ids(path: Path, ids: NDArray[np.generic], table: Ids) -> ProtosegError:
    got = ", ".join(str(i) for i in np.unique(ids)[:8])
    known = np.flatnonzero(table != unknown_id(table))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    expected = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
    return ProtosegError(
        f"mask {path}: expected class ids {expected}, got {got}: correct the mask, or choose the data set of its ids"
    )
