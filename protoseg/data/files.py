"""Image and mask files: how they are decoded, with errors that name the file, and the labels that masks stand for."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from protoseg.data import decoding
from protoseg.data.label_spaces import Ids, unknown_id
from protoseg.types import ProtosegError, told

Color = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_MAX_SHOWN = 256  # values of one mask that are told apart; a photograph has more
# Where the ids of masks of several channels are: in one of them, or what a function makes of ``h w 3``, red first.
Channel = int | Callable[[NDArray[Any]], NDArray[Any]]


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


def read_image(path: Path, turn: bool = True, value_range: decoding.Range | None = None) -> NDArray[np.uint8]:
    """Decode an image to RGB, ``h w 3``; turned as EXIF says, or, without ``turn``, as it is stored.

    Of 16 bits the high 8, or ``value_range`` spread over them (``decoding.to_bytes``). Raises ProtosegError: the file
    cannot be read, is cut short, is not an image, or has too many pixels (``decoding.limit_pixels``).
    """
    data = read_bounded(path, "image")
    with reading(path, "image"):
        pixels = _decode_image(data, value_range)
    return decoding.turned(pixels, decoding.orientation(data)) if turn else pixels


def _decode_image(data: bytes, value_range: decoding.Range | None) -> NDArray[np.uint8]:
    if data.startswith(decoding.JPEG_START) and (pixels := decoding.decode_jpeg(data)) is not None:
        return pixels
    if not data.startswith((decoding.JPEG_START, decoding.PNG_START)):
        return decoding.decode_picture(data, value_range)
    # OpenCV is about twice as fast as Pillow, but some versions fill up a file that is cut short with grey and
    # say nothing (imread still does in 4.12). So Pillow looks first at a file that does not end as it should.
    if not _ends_properly(data):
        if data.startswith(decoding.PNG_START):
            raise ValueError("it is cut short")
        decoding.open_picture(data).load()
    depth = cv2.IMREAD_ANYDEPTH if value_range else 0
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | depth)
    if image is None:
        raise ValueError("it cannot be decoded")
    image = decoding.to_bytes(image, value_range) if image.dtype == np.uint16 else image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), dtype=np.uint8)


def read_label(path: Path, table: Ids, channel: Channel | None = None) -> Ids:
    """Decode a PNG of class ids and map it by ``table`` (``label_spaces.id_table``) to train ids of its type, ``h w``.

    ``channel`` holds the ids of masks with several, 0 being the first in the file, or says how they follow from all;
    None: one channel of grey, or a palette.

    Raises ProtosegError: the file cannot be read, is no PNG, has too many pixels, other channels, ids not in ``table``.
    """
    if channel is not None:
        return labels_of_ids(path, _decode_channel(path, _mask_bytes(path), channel), table)
    mask = read_mask(path)
    if mask.kind == "colour" or (mask.clear is not None and mask.kind != "palette"):
        text = f"mask {path}: expected one channel of class ids (grey or palette PNG)"
        raise ProtosegError(f"{text}, got RGB colours or transparent pixels: convert the colours to ids first")
    return labels_of_ids(path, mask.values, table)


def read_mask(path: Path) -> Mask:
    """Decode a mask as it is; raises ProtosegError where it cannot be read, is a JPEG, or has other channels.

    By Pillow, which unlike OpenCV does not turn a palette's indices into colours.
    """
    data = _mask_bytes(path)
    with reading(path, "mask"), decoding.open_picture(data) as file:
        return _as_mask(path, file, data)


def _mask_bytes(path: Path) -> bytes:
    data = read_bounded(path, "mask")
    with reading(path, "mask"):
        doubt = decoding.mask_doubt(data)
    if doubt:
        raise doubtful_mask(path, doubt)
    return data


def read_bounded(path: Path, kind: str) -> bytes:
    """The bytes of a file; raises ProtosegError if it cannot be read or has too many pixels to be decoded."""
    with reading(path, kind):
        decoding.check_regular(path)
        data = path.read_bytes()
        size = decoding.picture_size(data)
    decoding.check_pixels(f"{kind} {path}", *size)
    return data


def _decode_channel(path: Path, data: bytes, channel: Channel) -> NDArray[Any]:
    """The ids of a colour PNG of 8 or 16 bits. Pillow keeps only the high byte of 16-bit colours, OpenCV both."""
    with reading(path, "mask"):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if _ends_properly(data) else None
        if image is None:
            raise ValueError("it is cut short, or no PNG file")
    if image.ndim != 3:
        place = "the channels" if callable(channel) else f"channel {channel}"
        text = f"mask {path}: expected class ids in {place} of a colour PNG, as in the data set's release"
        raise ProtosegError(f"{text}, got one channel: extract the mask again")
    pixels = np.asarray(image)[..., 2::-1]  # OpenCV gives blue, green, red
    return channel(pixels) if callable(channel) else pixels[..., channel]


def _ends_properly(data: bytes) -> bool:
    if data.startswith(decoding.JPEG_START):
        return data.endswith(decoding.JPEG_END)
    # Chunk by chunk: OpenCV makes room for as much as a damaged length asks for.
    chunks = decoding.png_chunks(data) if data.startswith(decoding.PNG_START) else ()
    return any(data[at + 4 : at + 4 + len(decoding.PNG_END)] == decoding.PNG_END for at in chunks)


def doubtful_mask(path: Path, doubt: str) -> ProtosegError:
    """The error of a mask whose numbers may not be the ids that were drawn; ``doubt`` as of ``mask_doubt``."""
    remedy = "export the mask again as PNG from where it was drawn (converted to PNG it stays damaged)"
    return ProtosegError(f"mask {path}: expected ids as they were drawn, got {doubt}: {remedy}")


def reading(path: Path, kind: str) -> AbstractContextManager[None]:
    """Inside, what decoders raise becomes the ProtosegError of that file."""

    def message(reason: object) -> str:
        if isinstance(reason, FileNotFoundError):
            return f"{kind} {path}: expected a file, got none there; correct the path, or copy it again"
        if isinstance(reason, UnidentifiedImageError):
            more = ", or a TIFF of N channels: train with data.dataset.channels=N" if kind == "image" else ""
            reason = f"it is no image{more}"  # Pillow names the buffer
        text = f"{kind} {path}: expected a complete image file, got one that cannot be read ({reason})"
        return f"{text}: copy the file again, or move it elsewhere (of labelled data, image and mask)"

    return told(message, *decoding.FAILURES, cv2.error)


def _as_mask(path: Path, file: Image.Image, data: bytes) -> Mask:
    """What Pillow's image holds; raises ``decoding.FAILURES``, and ProtosegError where that is nothing for a mask.

    The image is not decoded yet. ``data`` are its bytes: Pillow scales grey levels of 2 and 4 bits up, and keeps the
    high bytes of colours of 16.
    """
    depth = data[decoding.PNG_DEPTH] if data.startswith(decoding.PNG_START) else 8
    mode, pixels = file.mode, np.asarray(file)
    clear = None
    if "transparency" in file.info and mode in ("P", "RGB"):
        clear = np.asarray(file.convert("RGBA"))[..., 3] == 0
    if mode == "P":
        colors = np.full((256, 3), -1)
        palette = np.reshape(file.getpalette() or [], (-1, 3))
        colors[: len(palette)] = palette
        if file.format == "GIF" and (palette == palette[:, :1]).all():  # of grey levels, which are renumbered in it
            return Mask("grey", colors[pixels, 0].astype(np.uint8), np.arange(256)[:, None].repeat(3, 1), clear)
        return Mask("palette", pixels, colors, clear)
    level = file.info.get("transparency")  # of grey levels, as they are stored, but for those of one bit
    if mode in ("I;16", "I;16B", "I"):
        return Mask("16-bit", pixels, None, None if level is None else pixels == level)
    if depth > 8 or mode not in ("1", "L", "LA", "RGB", "RGBA"):
        text = f"mask {path}: expected class ids in one channel (grey or palette PNG) or RGB colours of 8 bits"
        raise ProtosegError(f"{text}, got {mode} of other bits: export the mask again")
    if mode in ("LA", "RGBA"):
        clear, pixels = pixels[..., -1] == 0, pixels[..., :-1]
    if mode in ("RGB", "RGBA"):
        return Mask("colour", np.ascontiguousarray(pixels), None, clear)
    bits = 1 if mode == "1" else depth
    levels = np.arange(1 << bits) * (255 // ((1 << bits) - 1))
    values = pixels.reshape(pixels.shape[:2]).astype(np.uint8, copy=False)
    values = values if mode == "1" or bits == 8 else values // np.uint8(levels[1])
    clear = clear if level is None else values == (level > 0 if mode == "1" else level)
    return Mask("grey" if bits == 8 else f"{bits}-bit", values, levels[:, None].repeat(3, 1), clear)


def used_values(mask: Mask) -> Used:
    """The ids and colours that a mask uses, sorted."""
    ids, shown = mask.ids, ... if mask.clear is None else ~mask.clear
    if ids is not None:
        seen = ids[shown].ravel()  # counting is ten times as fast as sorting
        found = np.flatnonzero(np.bincount(seen)) if seen.dtype in (np.uint8, np.uint16) else np.unique(seen)
        grey = np.stack([found] * 3, 1) if mask.kind == "colour" else None
        colors = grey if mask.colors is None else mask.colors[found]
        return Used(mask.kind, tuple(found.tolist()), None if colors is None else tuple(map(tuple, colors.tolist())))
    packed = np.unique(_packed(mask.values)[shown])[:_MAX_SHOWN]
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
        label = np.array([colors.get((r, g, b), unknown) for r, g, b in mask.colors.tolist()], dtype)[mask.values]
    bad = (label == unknown) & (True if mask.clear is None else ~mask.clear)
    if bad.any():
        found = np.unique(mask.values[bad], axis=0)
        found = found if mask.colors is None else mask.colors[found]
        shown = ", ".join(str(tuple(color)) for color in found[:5].tolist()) + ", ..." * (len(found) > 5)
        got = f"{len(found)} other(s) on {bad.sum()} pixels: {shown}"
        remedy = "add them to the file of classes (void: what counts nowhere), or export the mask without smooth edges"
        raise ProtosegError(f"mask {path}: expected the colours of the classes, got {got}: {remedy}")
    return label


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
    text = f"mask {path}: expected class ids {expected}, got {got}"
    return ProtosegError(f"{text}: correct the mask, or choose the data set of its ids")
