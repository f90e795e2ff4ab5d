"""Decoding image and mask files, with errors that name the file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from protoseg.data import decoding
from protoseg.data.label_spaces import Ids
from protoseg.data.masks import Mask, as_mask, labels_of_ids
from protoseg.types import ProtosegError

# Where the ids of masks of several channels are: in one of them, or what a function makes of ``h w 3``, red first.
Channel = int | Callable[[NDArray[Any]], NDArray[Any]]


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

    Raises ProtosegError: the file cannot be read, is no PNG, has too many pixels, holds other channels, or holds an id
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
    with reading(path, "mask"), decoding.open_picture(data) as file:
        mask, mode = as_mask(file, data), file.mode
    if mask is None:
        raise ProtosegError(
            f"mask {path}: expected class ids in one channel (grey or palette PNG) or RGB colours of 8 bits, got "
            f"{mode} of other bits: export the mask again"
        )
    return mask


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
        raise ProtosegError(
            f"mask {path}: expected class ids in {'the channels' if callable(channel) else f'channel {channel}'} of a "
            "colour PNG, as in the data set's release, got one channel: extract the mask again"
        )
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
    return ProtosegError(
        f"mask {path}: expected ids as they were drawn, got {doubt}: export the mask again as PNG from where it was "
        "drawn (converted to PNG it stays damaged)"
    )


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Inside, what decoders raise becomes the ProtosegError of that file (``unreadable``)."""
    try:
        yield
    except ProtosegError:  # says already what is wrong, and what to do
        raise
    except (*decoding.FAILURES, cv2.error) as error:
        raise unreadable(path, kind, error) from error


def unreadable(path: Path, kind: str, reason: object) -> ProtosegError:
    """The error of a file that cannot be decoded."""
    if isinstance(reason, FileNotFoundError):
        return ProtosegError(f"{kind} {path}: expected a file, got none there; correct the path, or copy it again")
    if isinstance(reason, UnidentifiedImageError):
        reason = "it is no image, or of channels that data.dataset.channels reads"  # Pillow names the buffer
    return ProtosegError(
        f"{kind} {path}: expected a complete image file, got one that cannot be read ({reason}): "
        "copy the file again, or move it elsewhere (of labelled data, image and mask)"
    )
