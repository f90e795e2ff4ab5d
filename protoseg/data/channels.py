"""How image files are read: as RGB of 8 bits, or as any number of channels of 8 or 16 bits or floating point."""

import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from omegaconf import ListConfig
from PIL import ImageSequence

from protoseg.data import decoding
from protoseg.data.files import read_bounded, read_image, reading
from protoseg.types import ProtosegError

OPTIONS = ("channels", "bands", "image_range", "shown")  # settings of a data set that ``ImageReader`` takes


class ImageReader:
    """Reads an image as uint8 RGB ``h w 3``, or, with ``channels``, as float32 ``h w channels`` in [0, 1].

    ``bands`` is how the names of the files of each image end, without suffix, one file for each channel. The values of
    ``image_range``, ``[low, high]`` or a pair for each channel, become 0 and 1 (without ``channels``, of images of 16
    bits, black and white), what lies outside cut off. Of more than three channels pictures show ``shown``, from 0.

    Raises ProtosegError: settings that make no sense.
    """

    def __init__(self, channels: Any = None, bands: Any = None, image_range: Any = None, shown: Any = None) -> None:
        self.bands: list[str] = as_list(bands)
        self.channels: int | None = len(self.bands) if self.bands and channels is None else channels
        if self.channels is not None and (type(self.channels) is not int or not 0 < self.channels <= 512):
            raise ProtosegError(f"data.dataset.channels: expected a number from 1 to 512, got {channels!r}")
        named = {band for band in self.bands if type(band) is str and band and not set(band) & set("/\\")}
        if self.bands and not len(named) == len(self.bands) == self.channels:
            wanted = f"an end of names for each of {self.channels} channels"
            raise ProtosegError(f"data.dataset.bands: expected {wanted}, got {self.bands}")
        self.shown: list[int] = as_list(shown)
        n = self.channels or 1
        if self.shown and (len(self.shown) != 3 or n < 4 or not {*self.shown} <= {*range(n)}):
            raise ProtosegError(f"data.dataset.shown: expected three of more than 3 channels, got {self.shown} of {n}")
        pairs = as_list(image_range)
        if image_range is not None and not (pairs and isinstance(pairs[0], list | tuple | ListConfig)):
            pairs = [image_range] * n
        most = (0, 65535) if self.channels is None else (-math.inf, math.inf)
        self.ranges = [_checked_range(pair, *most) for pair in pairs]
        if self.ranges and len(self.ranges) != n:
            wanted = f"[low, high] for all or for each of {n} channels"
            raise ProtosegError(f"data.dataset.image_range: expected {wanted}, got {len(self.ranges)}")

    def first(self, paths: Iterable[Path]) -> list[Path]:
        """Of the files found, one for each image: that of the first band."""
        return [path for path in paths if path.stem.endswith("".join(self.bands[:1]))]

    def files(self, path: Path) -> list[Path]:
        """The files of an image, one for each band, of which ``path`` is the first."""
        stem = path.stem.removesuffix(self.bands[0]) if self.bands else ""
        return [path.with_name(f"{stem}{band}{path.suffix}") for band in self.bands] or [path]

    def read(self, path: Path, turn: bool = True) -> NDArray[Any]:
        """An image as the class says; raises as ``files.read_image``, and for other channels, NaN and infinity."""
        if self.channels is None:
            return read_image(path, turn, *self.ranges)
        pixels = self.scaled(self.raw(path), f"image {path}")
        return decoding.turned(pixels, decoding.orientation(path)) if turn and path.suffix.lower() != ".npy" else pixels

    def raw(self, path: Path) -> NDArray[Any]:
        """The numbers in the files of an image, ``h w channels``; raises as ``read``."""
        each = [_numbers(file, 1 if self.bands else self.channels or 3) for file in self.files(path)]
        if len(sizes := {pixels.shape[:2] for pixels in each}) > 1:
            raise ProtosegError(f"image {path}: expected bands of one size, got {sizes}: resample them to one grid")
        return np.concatenate(each, axis=2) if self.bands else each[0]

    def scaled(self, pixels: NDArray[Any], what: str) -> NDArray[np.float32]:
        """Numbers as they are in files, ``h w channels``, to [0, 1]; ``what`` they are begins messages."""
        ranges = self.ranges or ([(0, 255)] if pixels.dtype == np.uint8 else [])
        if not ranges:
            text = f"{what}: expected to know which numbers become 0 and 1, got {pixels.dtype} and no image_range"
            remedy = "set data.dataset.image_range (`protoseg data stats` measures it, and so does training)"
            raise ProtosegError(f"{text}: {remedy}")
        low, high = np.array(ranges, np.float32).T
        out = pixels.astype(np.float32)
        out -= low
        out /= high - low
        return np.clip(out, 0, 1, out=out)


def as_list(value: Any) -> list[Any]:
    """A list of a config or of Python; none for None. Anything else is its own only element."""
    return list(value) if isinstance(value, list | tuple | ListConfig) else [] if value is None else [value]


def _checked_range(value: Any, least: float, most: float) -> decoding.Range:
    numbers = as_list(value)
    if [type(x) in (int, float) for x in numbers] != [True, True] or not least <= numbers[0] < numbers[1] <= most:
        text = "image_range: expected [low, high], the values that become black and white, e.g. [0, 4095]"
        raise ProtosegError(f"{text}, got {value!r}")
    return float(numbers[0]), float(numbers[1])


def _numbers(path: Path, channels: int) -> NDArray[Any]:
    """The numbers in one file, ``h w channels``."""
    with reading(path, "image"):
        decoding.check_regular(path)
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(decoding.TIFF_STARTS):
            pixels = _tiff(path, channels)
        elif start.startswith(decoding.NPY_START):
            pixels = _array(read_bounded(path, "image"), channels)
        else:
            image = cv2.imdecode(np.frombuffer(read_bounded(path, "image"), np.uint8), cv2.IMREAD_UNCHANGED)
            if image is None:
                raise ValueError("it cannot be decoded")
            pixels = np.atleast_3d(image)
            if pixels.shape[2] > 2:  # OpenCV has blue first
                pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    check_numbers(pixels, channels, path)
    return pixels


def check_numbers(pixels: NDArray[Any], channels: int, path: Path) -> None:
    """Raise ProtosegError for other channels ``h w c`` than are expected, NaN and infinity."""
    if pixels.shape[2] != channels:
        text = f"image {path}: expected {channels} channel(s), as data.dataset.channels or the checkpoint says"
        remedy = "give images of one number of channels, or train with another"
        raise ProtosegError(f"{text}, got {pixels.shape[2]}: {remedy}")
    if pixels.dtype.kind == "f" and not (good := np.isfinite(pixels).all(axis=2)).all():
        text = f"image {path}: expected finite numbers, got NaN or infinity in {(~good).sum()} of {good.size} pixels"
        raise ProtosegError(f"{text}: write a number there, e.g. that of missing data")


def _array(data: bytes, channels: int) -> NDArray[Any]:
    array = decoding.read_array(data)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "uif":
        raise ValueError(f"it is an array {array.shape} of {array.dtype}, not numbers h w, h w c or c h w")
    return array.transpose(1, 2, 0) if array.shape[2] != channels == array.shape[0] else array


def _tiff(path: Path, channels: int) -> NDArray[Any]:
    """Pages of one channel each by Pillow, all else by rasterio: Pillow knows no channels without a colour."""
    with suppress(*decoding.FAILURES), decoding.open_picture(path) as file:  # raised at kinds that it does not know
        decoding.check_pixels(f"image {path}", *file.size)
        if getattr(file, "n_frames", 1) == channels and (file.mode in "LIF" or file.mode.startswith("I;16")):
            return np.stack([np.asarray(page) for page in ImageSequence.Iterator(file)], axis=2)
    with decoding.geotiff(path) as file:
        return file.read().transpose(1, 2, 0)
