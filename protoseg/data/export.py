"""Predictions in the formats that the benchmark servers take, which ``export.yaml`` describes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from PIL import Image
from rich.console import Console
from rich.progress import track

from protoseg.data import public
from protoseg.data.files import read_label
from protoseg.data.label_spaces import FILE_IGNORED, UNKNOWN_ID, Ids, file_ids, id_table
from protoseg.data.pairing import by_key, list_images
from protoseg.files import write_file
from protoseg.types import ProtosegError

FORMATS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("export.yaml").read_bytes())


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
