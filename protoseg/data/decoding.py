"""The formats that are read, the limit of pixels asked of a file's header, damaged JPEGs, EXIF's orientation."""

import io
import logging
import math
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from protoseg.types import ProtosegError, told

Range = tuple[float, float]
PNG_DEPTH = 24  # where the header has the bits per channel
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NPY_START = b"\x93NUMPY"
_JP2_SIZE, _JP2_CODING = b"\xff\x4f\xff\x51", b"\xff\x52"  # markers: start and size; coding style
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pillow's names. No other decoder is let near a file: that of EPS would start a program.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")
MAX_PIXELS = 500_000_000  # of an image or a mask, unless ``limit_pixels`` said otherwise
# What Pillow and NumPy raise on files that are bad.
FAILURES = (OSError, SyntaxError, ValueError, TypeError, IndexError, TokenError, Image.DecompressionBombError)
_REFUSALS = (ValueError, KeyError)  # simplejpeg's; the second where the header ends before it says what form it has
_LIMIT = "PROTOSEG_MAX_PIXELS"
_OPENCV_PIXELS, _PNG_SIDE = 1 << 30, 1_000_000  # what these decode at most, whatever is asked of them
_DAMAGE = re.compile("premature end|bad huffman|instead of rst|progression|extraneous bytes before marker", re.I)
_START_OF_SCAN, _FILL = 0xDA, 0xFF
_BLOCK = 64  # pixels

LOSSY = "whose compression changes class ids, most of all at the edges"
_UNREAD_MODES = {"I": "whole numbers of 32 bits", "F": "floating-point numbers"}
_OTHERS = "; as a number of channels data.dataset.channels reads such"

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # what it cannot read is told as an error
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ``check_pixels`` speaks


def limit_pixels(pixels: int) -> None:
    """Refuse images and masks of more pixels from now on, in this process and in those that it starts.

    Raises ProtosegError: not a whole number above 0, or more than can be decoded.
    """
    if not isinstance(pixels, int) or not 0 < pixels <= _OPENCV_PIXELS:
        text = f"max_pixels: expected a whole number from 1 to {_OPENCV_PIXELS}, OpenCV's limit"
        raise ProtosegError(f"{text}, got {pixels}")
    os.environ[_LIMIT] = str(pixels)  # spawned workers inherit nothing else


def check_pixels(what: str, width: int, height: int) -> None:
    """Raise ProtosegError if ``what`` (an image or mask) is too large to be decoded, by the sides in its header."""
    limit = int(os.environ.get(_LIMIT, MAX_PIXELS))
    if width * height > limit:
        text = f"{what}: expected at most {limit} pixels, got {width} x {height} = {width * height}: cut it up, or"
        raise ProtosegError(f"{text} set max_pixels={width * height} (in Python: protoseg.data.limit_pixels)")
    if max(width, height) > _PNG_SIDE:
        raise ProtosegError(f"{what}: expected sides of at most {_PNG_SIDE} pixels, got {width} x {height}: cut it up")


def file_size(path: Path) -> tuple[int, int]:
    """Width and height of an image of any channels, of which only the header is asked; raises ``FAILURES``."""
    check_regular(path)
    if path.suffix.lower() == ".npy":
        return picture_size(path.read_bytes())
    try:
        with open_picture(path) as file:
            return file.size
    except UnidentifiedImageError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
    with geotiff(path) as file:
        return file.width, file.height


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height, of which only the header of the file is asked; raises ``FAILURES`` if it has none."""
    if data.startswith(NPY_START):
        shape = read_array(data).shape
        if len(shape) not in (2, 3):
            raise ValueError(f"it is an array of {shape}, not h w, h w 3 or h w 4")
        height, width = shape[1:] if len(shape) == 3 and shape[0] < shape[2] else shape[:2]
        return width, height
    if data.startswith(PNG_START) and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data.startswith(JPEG_START):
        with suppress(*_REFUSALS):  # Pillow says what is wrong
            height, width = simplejpeg.decode_jpeg_header(data, strict=False)[:2]
            return width, height
    return open_picture(data).size


def check_regular(path: Path) -> None:
    """Raise ValueError or OSError unless it is a file that ends, as a pipe or a device does not."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file, but a folder, a pipe or a device")


def open_picture(source: Path | bytes) -> Image.Image:
    """Pillow's image, its pixels not decoded yet; raises ``FAILURES``. Its own limit of pixels is raised to ours.

    An array of NumPy is an image as well: grey ``h w``, RGB ``h w 3`` or RGBA ``h w 4``.
    """
    if isinstance(source, Path):
        check_regular(source)
        source = source.read_bytes() if source.suffix.lower() == ".npy" else source
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(os.environ.get(_LIMIT, MAX_PIXELS)))
    if isinstance(source, bytes) and source.startswith(NPY_START):
        return _open_array(source)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)


def read_array(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a file of NumPy's; raises ``FAILURES``."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read(file)  # type: ignore[no-untyped-call]
    # From the bytes that are there: a header may promise more. Never objects, whose pickles are code.
    return np.frombuffer(data, dtype, math.prod(shape), file.tell()).reshape(shape, order="F" if in_columns else "C")


def _open_array(data: bytes) -> Image.Image:
    array = read_array(data)
    array = array.astype(np.uint8) if array.dtype == bool else array
    if array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
        if array.size and not -(1 << 31) <= int(array.min()) <= int(array.max()) < 1 << 31:
            raise ValueError("its numbers are too large")
        array = array.astype(np.int32)
    if not array.size or array.ndim not in (2, 3):
        raise ValueError(f"it is an array of {array.shape}, not h w, h w 3 or h w 4")
    return Image.fromarray(np.ascontiguousarray(array))


@contextmanager
def geotiff(path: Path) -> Iterator[Any]:
    """A TIFF as rasterio opens it; raises ProtosegError where that is not installed, or the image is too large."""
    text = f"image {path}: expected rasterio for such a TIFF, got none: pip install 'protoseg[geo]'"
    with told(lambda _: text, ImportError):
        import rasterio
    # For good: threads open several at once. One driver: others would follow what a file says to further files.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, driver="GTiff") as file:
        check_pixels(f"image {path}", file.width, file.height)
        yield file


def to_bytes(pixels: NDArray[np.uint16], value_range: Range | None) -> NDArray[np.uint8]:
    """8 bits of 16: the high ones, or ``value_range`` spread over them, what lies outside cut off."""
    if value_range is None:
        return (pixels >> 8).astype(np.uint8)
    low, high = value_range
    return np.clip((pixels - np.float32(low)) * np.float32(255 / (high - low)), 0, 255).round().astype(np.uint8)


def largest_deep_value(path: Path) -> int:
    """The largest value in an image of 16 bits, 0 of any other; raises ``FAILURES``."""
    with open_picture(path) as file:
        if file.format != "PNG" and not file.mode.startswith("I;16") and not _deep_colors(file):
            return 0
    data = path.read_bytes()
    check_pixels(f"image {path}", *picture_size(data))
    deep = not data.startswith(PNG_START) or data[PNG_DEPTH] == 16
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if deep else None
    return 0 if image is None else int(image.max())


def _deep_colors(file: Image.Image) -> bool:
    """Whether a TIFF has red, green and blue of more than 8 bits, of which Pillow keeps the high 8."""
    return len(file.getbands()) > 1 and max(getattr(file, "tag_v2", {}).get(258, (8,))) > 8


def decode_picture(data: bytes, value_range: Range | None = None) -> NDArray[np.uint8]:
    """RGB ``h w 3`` of one of the formats that are neither PNG nor JPEG, as it is stored; of 16 bits see ``to_bytes``.

    Header and pixels are read by the same decoder, so that none decodes more than was asked of the header. Raises
    FAILURES: a damaged file, one of several pages or frames, or with other than grey or RGB of 8 or 16 bits.
    """
    with open_picture(data) as file:
        if getattr(file, "n_frames", 1) > 1:
            raise ValueError(f"it has {file.n_frames} pages or frames, not one{_OTHERS}")  # type: ignore[attr-defined]
        before = _orientation(file)
        file.load()
        channels = getattr(file, "tag_v2", {}).get(277, 1)  # of a TIFF; Pillow leaves out what it has no name for
        if file.mode in _UNREAD_MODES or channels > len(file.getbands()):
            got = _UNREAD_MODES.get(file.mode, f"of {channels} channels")
            raise ValueError(f"its pixels are {got}, not grey or RGB of 8 or 16 bits{_OTHERS}")
        deep = file.mode.startswith("I;16")
        if value_range and _deep_colors(file):
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
            colors = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if before != 1 or colors is None or colors.dtype != np.uint16 or colors.shape[1::-1] != file.size:
                raise ValueError("its 16 bits of red, green and blue cannot be decoded")
            return to_bytes(colors[..., ::-1], value_range)
        picture = Image.fromarray(to_bytes(np.asarray(file), value_range)) if deep else file
        pixels = np.asarray(picture.convert("RGB"))
        # Pillow turns TIFFs by itself, and forgets then that they were to be turned.
        return pixels if _orientation(file) == before else turned(pixels, {6: 8, 8: 6}.get(before, before))


def mask_doubt(data: bytes) -> str:
    """What a file is whose ids are lost (decoders stretch depths other than 8 and 16 bits); "" where they are not."""
    if data.startswith((PNG_START, NPY_START)):
        return ""
    if data.startswith(JPEG_START):
        return f"a JPEG, {LOSSY}"
    if data[8:12] == b"WEBP" and b"VP8L" not in data:
        return f"a lossy WebP, {LOSSY}"
    if data[4:8] == b"jP  " or data.startswith(_JP2_SIZE):
        at = data.find(_JP2_SIZE)
        channels, depth = data[at + 41], 1 + (data[at + 42] & 127)
        if data[data.find(_JP2_CODING, at) + 13] == 0:  # the 9-7 wavelet
            return f"a lossy JPEG 2000, {LOSSY}"
        return "" if depth == 8 or (depth, channels) == (16, 1) else f"a JPEG 2000 of {depth} bits"
    with open_picture(data) as file:
        if getattr(file, "n_frames", 1) > 1:
            return "a file of several pages or frames"
        tags = getattr(file, "tag_v2", {})  # of a TIFF
        depth, grey, from_white = max(tags.get(258, (1,))), tags.get(277, 1) == 1, tags.get(262) == 0
        if tags.get(259) in (6, 7, 34676, 34677, 50001):
            return f"a TIFF of lossy form, {LOSSY}"
        if depth in (2, 4) or (depth > 8 and not grey) or (depth > 1 and from_white) or tags.get(274, 1) != 1:
            return f"a TIFF of {depth} bits a channel{', 0 for white' * from_white}, orientation {tags.get(274, 1)}"
    return ""


def orientation(source: Path | bytes) -> int:
    """How EXIF says that an image is to be turned, 1 (not at all) to 8; 1 where it says nothing that can be read."""
    if isinstance(source, bytes) and not _may_be_turned(source):
        return 1
    with suppress(Exception), open_picture(source) as file:  # whatever Pillow stumbles over in there
        return _orientation(file)
    return 1


def _may_be_turned(data: bytes) -> bool:
    """Whether a file may have EXIF, without a look at its pixels."""
    if data.startswith(PNG_START):
        return any(data[at + 4 : at + 8] == b"eXIf" for at in png_chunks(data))
    if data[8:16] == b"WEBPVP8X":
        return bool(data[20] & 8)
    return b"Exif" in data[: 1 << 17] if data.startswith(JPEG_START) else data.startswith(TIFF_STARTS)


def png_chunks(data: bytes) -> Iterator[int]:
    """Where each chunk of a PNG begins, as far as their lengths can be followed."""
    at = len(PNG_START)
    while at < len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _orientation(file: Image.Image) -> int:
    found = file.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An image ``h w c`` turned and mirrored as EXIF's orientation says (Exif 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """RGB ``h w 3`` as it is stored, the bits that OpenCV gives, but sooner; None where OpenCV is to decode the file.

    OpenCV and Pillow fill what is missing of a JPEG with grey where the file has its end mark, and say nothing. Raises
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
    return None if colors in ("CMYK", "YCCK") else np.asarray(image)


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
