"""Predictions in the formats that the benchmark servers take."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.files import read_label
from protoseg.data.label_spaces import FILE_IGNORED, UNKNOWN_ID, Ids, file_ids, id_table
from protoseg.data.pairing import by_key, list_images
from protoseg.data.public import ACDC, ADE20K, Cityscapes, COCOStuff, DarkZurich
from protoseg.files import write_file
from protoseg.types import ProtosegError


class ExportFormat(NamedTuple):
    """What a server wants."""

    dataset: type[SegmentationDataset]  # what was predicted; its mask files hold the ids wanted
    name: Callable[[str], str | None]  # the name wanted, of an image's without suffix; None for one that it has not
    example: str  # an image's name without suffix, for messages
    offset: int = 0  # added to the ids of the mask files

    @property
    def ids(self) -> Ids:
        """The id that stands for each train id, ``c``."""
        return file_ids(self.dataset.id_table, self.dataset.label_space.num_classes) + np.uint8(self.offset)


def _end(old: str, new: str) -> Callable[[str], str | None]:
    return lambda stem: stem.removesuffix(old) + new if stem.endswith(old) else None


FORMATS = {
    # cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py: label ids in CITY_SEQUENCE_FRAME*.png.
    "cityscapes": ExportFormat(Cityscapes, _end("_leftImg8bit", "_pred_labelIds"), "berlin_000000_000019_leftImg8bit"),
    # Both servers take train ids under the images' names, as the released code of DAFormer and MIC writes them.
    "acdc": ExportFormat(ACDC, _end("_rgb_anon", "_rgb_anon"), "GOPR0475_frame_000001_rgb_anon"),
    "dark_zurich": ExportFormat(DarkZurich, _end("_rgb_anon", "_rgb_anon"), "GOPR0356_frame_000001_rgb_anon"),
    # https://github.com/CSAILVision/placeschallenge, sceneparsing: ids from 1, names as the images'.
    "ade20k": ExportFormat(ADE20K, lambda stem: stem if stem.startswith("ADE_") else None, "ADE_test_00000001"),
    # https://github.com/nightrome/cocostuffapi, pngToCocoResultDemo.py, makes the server's JSON of such PNGs. Their ids
    # are those of labels.txt, one more than in the pixelmaps.
    "coco_stuff": ExportFormat(
        COCOStuff, lambda stem: stem if stem.isdecimal() and len(stem) == 12 else None, "000000000139", offset=1
    ),
}


def export_predictions(labels: Path, output: Path, name: str) -> list[Path]:
    """Write label PNGs of train ids, as ``evaluate.py`` leaves them in ``labels/``, in the format of a server.

    Those in a folder, subfolders included, into one folder, whose files are returned; ``name`` is one of ``FORMATS``.
    Raises ProtosegError: no PNGs there, a name that is not the data set's, two files that would get one name, or ids
    that are no classes of its label space.
    """
    wanted = FORMATS[name]
    sources = _by_name(labels, wanted, name)
    known = id_table({i: i for i in range(wanted.dataset.label_space.num_classes)})
    # Predictions hold no ignored pixels; a label file of a ground truth would.
    known[FILE_IGNORED] = UNKNOWN_ID
    ids_wanted = wanted.ids
    for target, source in track(sources.items(), f"exporting for {name}", transient=True, console=Console(stderr=True)):
        ids = Image.fromarray(ids_wanted[read_label(source, known)])
        write_file(output / target, lambda path, ids=ids: ids.save(path, format="PNG"))  # type: ignore[misc]
    return [output / target for target in sources]


def _by_name(labels: Path, wanted: ExportFormat, name: str) -> dict[str, Path]:
    """The label files by the names that the server wants."""
    found = [p for p in list_images(labels, recursive=True) if p.suffix.lower() == ".png"] if labels.is_dir() else []
    if not found:
        raise ProtosegError(
            f"export: expected a folder with label PNGs, got {labels.absolute()}, which has none: give the folder "
            "labels/ of a run of evaluate.py (with labels in its save=…)"
        )

    def name_wanted(path: Path) -> str:
        stem = wanted.name(path.stem)
        if stem is None:
            raise ProtosegError(
                f"export: expected names as {name}'s images have them, e.g. {wanted.example}.png, got {path}: choose "
                "the format of the data that was predicted"
            )
        return f"{stem}.png"

    return by_key(found, name_wanted)
