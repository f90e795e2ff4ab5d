"""Files made of a data set: predictions in the formats of ``export.yaml``, and a copy that decodes much faster."""

import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from struct import pack as pack_bytes
from typing import Any

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from protoseg.data import public
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import PNG_DEPTH, PNG_START, open_picture
from protoseg.data.files import read_bounded, read_label, reading
from protoseg.data.label_spaces import FILE_IGNORED, UNKNOWN_ID, Ids, file_ids, id_table
from protoseg.data.pairing import by_key, list_images
from protoseg.data.statistics import in_threads
from protoseg.files import write_file
from protoseg.types import ProtosegError

FORMATS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("export.yaml").read_bytes())
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}
_KEPT_MODES = ("P", "1", "LA")  # small and unfiltered already; OpenCV would turn ids into colours, as it scales 2 bits


def wanted_ids(name: str) -> Ids:
    """The id that stands for each train id in a format of ``FORMATS``, ``c``."""
    dataset = getattr(public, FORMATS[name]["dataset"])
    return file_ids(dataset.id_table, dataset.label_space.num_classes) + np.uint8(FORMATS[name].get("offset", 0))


def export_predictions(labels: Path, output: Path, name: str) -> list[Path]:
    """Write label PNGs of train ids, as ``evaluate.py`` leaves them in ``labels/``, in the format of a server.

    Those in a folder, subfolders included, into one folder, whose files are returned; ``name`` is one of ``FORMATS``.
    Raises ProtosegError: no PNGs there, a name that is not the data set's, two files that would get one name, or ids
    that are no classes of its label space.
    """
    sources, ids_wanted = _by_name(labels, name), wanted_ids(name)
    known = id_table({i: i for i in range(len(ids_wanted))})
    # Predictions hold no ignored pixels; a label file of a ground truth would.
    known[FILE_IGNORED] = UNKNOWN_ID
    for target, source in track(sources.items(), f"exporting for {name}", transient=True, console=Console(stderr=True)):
        ids = Image.fromarray(ids_wanted[read_label(source, known)])
        write_file(output / target, lambda path, ids=ids: ids.save(path, format="PNG"))  # type: ignore[misc]
    return [output / target for target in sources]


def _by_name(labels: Path, name: str) -> dict[str, Path]:
    """The label files by the names that the server wants."""
    wanted = FORMATS[name]
    found = [p for p in list_images(labels, recursive=True) if p.suffix.lower() == ".png"] if labels.is_dir() else []
    if not found:
        text = f"export: expected a folder with label PNGs, got {labels.absolute()}, which has none"
        raise ProtosegError(f"{text}: give the folder labels/ of a run of evaluate.py (with labels in its save=…)")

    def name_wanted(path: Path) -> str:
        match = re.fullmatch(wanted["images"], path.stem, re.DOTALL)
        if match is None:
            text = f"export: expected names as {name}'s images have them, e.g. {wanted['example']}.png, got {path}"
            raise ProtosegError(f"{text}: choose the format of the data that was predicted")
        return f"{match.expand(wanted['file'])}.png"

    return by_key(found, name_wanted)


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
