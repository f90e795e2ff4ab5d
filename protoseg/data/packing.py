"""A copy of a data set whose PNGs decode several times faster: the same pixels in the same layout, uncompressed."""

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from struct import pack as pack_bytes

import cv2
import numpy as np
from numpy.typing import NDArray

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import PNG_DEPTH, PNG_START, open_picture
from protoseg.data.files import read_bounded, reading
from protoseg.data.statistics import in_threads
from protoseg.files import write_file
from protoseg.types import ProtosegError

_COLOR_TYPES = {1: 0, 3: 2, 4: 6}
_KEPT_MODES = ("P", "1", "LA")  # small and unfiltered already; OpenCV would turn ids into colours, as it scales 2 bits


def pack(datasets: Sequence[SegmentationDataset], root: Path, output: Path) -> tuple[int, int]:
    """Copy the images and masks of ``datasets`` to the same places under another folder, PNGs re-encoded.

    Images are stored without compression, masks with little, both without PNG's filters: inflating and unfiltering is
    most of the time that decoding takes. Other files (JPEGs, class files, lists of splits) are copied, and those that
    are there already are kept. Returns the bytes of the files before and after. Raises ProtosegError: a file that is no
    image, does not lie in ``root`` or cannot be written, or ``output`` is in ``root``.
    """
    if output.resolve().is_relative_to(root.resolve()):
        raise ProtosegError(f"pack: expected a folder outside that of the data, {root}, got {output}")
    files = {path: 1 for dataset in datasets for _, path in dataset.samples if path is not None}
    files |= {path: 0 for dataset in datasets for image, _ in dataset.samples for path in dataset.reader.files(image)}
    files |= {path: -1 for path in root.iterdir() if path.is_file() and path not in files}
    files |= {path: -1 for dataset in datasets for path in dataset.lists}
    for path in files:
        if not path.absolute().is_relative_to(root.absolute()):
            raise ProtosegError(f"pack: expected the files in {root}, got {path}: set data.root")

    def pack_file(path: Path) -> int:
        """Write a file, PNGs with zlib's level (-1: as it is); the size of what is there now."""
        target, level = output / path.absolute().relative_to(root.absolute()), files[path]
        if not target.is_file():
            packed = packed_png(path, level) if level >= 0 and path.suffix.lower() == ".png" else None
            write_file(target, lambda to: shutil.copyfile(path, to) if packed is None else to.write_bytes(packed))
        return target.stat().st_size

    return sum(path.stat().st_size for path in files), sum(in_threads(pack_file, [*files], "packing"))


def packed_png(path: Path, level: int) -> bytes | None:
    """The PNG with the same pixels, unfiltered; None for one that is better left; raises ProtosegError for no image."""
    data = read_bounded(path, "image")
    with reading(path, "image"):
        with open_picture(data) as file:
            if file.mode in _KEPT_MODES or data[PNG_DEPTH] < 8:
                return None
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        packed = encode_png(np.asarray(array), level)
    # What a file says beside its pixels (EXIF orientation) is lost: such a file stays.
    seen = [np.asarray(cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR)) for each in (data, packed)]
    return packed if np.array_equal(seen[0], seen[1]) else None


def encode_png(array: NDArray[np.generic], level: int) -> bytes:
    """A PNG of ``h w`` (grey), ``h w 3`` (BGR) or ``h w 4`` (BGRA), of 8 or 16 bits, all rows unfiltered.

    PNG specification, third edition, https://www.w3.org/TR/png-3; OpenCV before 4.12 cannot be told to leave out the
    filters, and Pillow cannot either.
    """
    height, width = array.shape[:2]
    channels = array.size // (height * width)
    pixels = array if channels == 1 else array[..., [2, 1, 0, 3][:channels]]
    rows = np.ascontiguousarray(pixels, dtype=">u2" if array.dtype == np.uint16 else np.uint8).view(np.uint8)
    unfiltered = np.zeros((height, 1 + rows.size // height), np.uint8)
    unfiltered[:, 1:] = rows.reshape(height, -1)
    head = pack_bytes(">IIBBBBB", width, height, 8 * array.dtype.itemsize, _COLOR_TYPES[channels], 0, 0, 0)
    packed = PNG_START
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(unfiltered.tobytes(), level)), (b"IEND", b"")):
        packed += pack_bytes(">I", len(data)) + kind + data + pack_bytes(">I", zlib.crc32(kind + data))
    return packed
