"""How many pixels are decoded at most, asked of a file's header, and JPEGs of which a part is missing."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from protoseg.types import ProtosegError

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
MAX_PIXELS = 500_000_000
"""Pixels of an image or a mask, unless ``limit_pixels`` said otherwise."""

FAILURES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on files that are bad."""

_REFUSALS = (ValueError, KeyError)  # simplejpeg's; the second where the header ends before it says what form it has
_LIMIT = "PROTOSEG_MAX_PIXELS"
_OPENCV_PIXELS, _LIBPNG_SIDE = 1 << 30, 1_000_000  # what these decode at most, whatever is asked of them
_DAMAGE = re.compile("premature end|bad huffman|instead of rst|progression|extraneous bytes before marker", re.I)
_START_OF_SCAN, _FILL = 0xDA, 0xFF
_BLOCK = 64  # pixels

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ``check_pixels`` speaks


def limit_pixels(pixels: int) -> None:
    """Refuse images and masks of more pixels from now on, in this process and in those that it starts.

    Raises:
        ProtosegError: not a whole number above 0, or more than can be decoded.
    """
    if not isinstance(pixels, int) or not 0 < pixels <= _OPENCV_PIXELS:
        raise ProtosegError(
            f"max_pixels: expected a whole number from 1 to {_OPENCV_PIXELS}, which is what OpenCV decodes at most, "
            f"got {pixels}"
        )
    os.environ[_LIMIT] = str(pixels)  # spawned workers inherit nothing else


def check_pixels(what: str, width: int, height: int) -> None:
    """Raise ProtosegError if an image or mask is too large to be decoded.

    Args:
        what: kind and path, for the message.
        width, height: as its header says.
    """
    limit = int(os.environ.get(_LIMIT, MAX_PIXELS))
    if width * height > limit:
        raise ProtosegError(
            f"{what}: expected at most {limit} pixels, got {width} x {height} = {width * height}: if it is meant to be "
            f"that large set max_pixels={width * height} (in Python: protoseg.data.limit_pixels), or cut it into pieces"
        )
    if max(width, height) > _LIBPNG_SIDE:
        raise ProtosegError(
            f"{what}: expected sides of at most {_LIBPNG_SIDE} pixels, got {width} x {height}: cut it into pieces"
        )


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height, of which only the header of the file is asked; raises ``FAILURES`` if it has none."""
    if data.startswith(PNG_START) and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data.startswith(JPEG_START):
        try:
            height, width = simplejpeg.decode_jpeg_header(data, strict=False)[:2]
            return width, height
        except _REFUSALS:
            pass  # Pillow says what is wrong
    return open_picture(data).size


def check_regular(path: Path) -> None:
    """Raise ValueError or OSError unless it is a file that ends, as a pipe or a device does not."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file, but a folder, a pipe or a device")


def open_picture(source: Path | bytes) -> Image.Image:
    """Pillow's image, its pixels not decoded yet; raises ``FAILURES``. Its own limit of pixels is raised to ours."""
    if isinstance(source, Path):
        check_regular(source)
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(os.environ.get(_LIMIT, MAX_PIXELS)))
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """RGB ``h w 3``, the bits that OpenCV gives, but sooner; None where OpenCV is to decode the file.

    OpenCV and Pillow fill what is missing of a JPEG with grey where the file has its end mark, and say nothing.

    Raises:
        ValueError: a part of the coded pixels is missing or damaged.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        if width * height > 8 * _BLOCK * len(data):  # Huffman codes have at least one bit per block
            raise ValueError(f"premature end: {len(data)} bytes cannot hold {width} x {height} pixels")
        image = simplejpeg.decode_jpeg(data)
    except _REFUSALS as error:  # tells the first of libjpeg's warnings, or why the form is not taken
        stray = "extraneous bytes" in str(error)
        if stray and (tidy := _without_stray_bytes(data)) != data:
            return decode_jpeg(tidy)
        if _DAMAGE.search(str(error)) and not (stray and "0xd9" in str(error)):  # before the end, all was decoded
            raise
        return None
    return None if colors in ("CMYK", "YCCK") or _is_turned(data) else np.asarray(image)


def _is_turned(data: bytes) -> bool:
    """Whether EXIF may ask for the image to be turned, which OpenCV does and libjpeg does not."""
    if b"Exif" not in data[: 1 << 17]:
        return False
    try:
        return bool(open_picture(data).getexif().get(0x0112, 1) != 1)
    except Exception:  # whatever Pillow stumbles over in there
        return True


def _without_stray_bytes(data: bytes) -> bytes:
    """The file without bytes between the segments of its header, as some cameras write them."""
    kept, at = bytearray(data[:2]), 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            return bytes(kept + data[at:])
        length = 0 if marker in (0, _FILL) else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += data[at : at + length]
        at += length or 1
    return data
