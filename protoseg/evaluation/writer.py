"""Where the pictures of an image go, under which name, and what every loop over images shows and checks."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from protoseg.distributed import rank
from protoseg.evaluation.pictures import Picture, label_png, overlay, panel
from protoseg.files import with_ending, write_file
from protoseg.types import LabelSpace, ProtosegError

_JPEG_SIDE = 65_500  # pixels, libjpeg's limit


def output_names(paths: Sequence[str], folder: Path | None = None) -> dict[str, Path]:
    """A name for the outputs of each image: its path relative to ``folder``, without suffix; None: the one all share.

    Images that would get the same name keep their suffixes (``a.jpg`` and ``a.png``); what is still the same, or one
    on some disks (``A.jpg`` and ``a.jpg``), gets ``_2``, ``_3``, ….
    """
    absolute = {path: Path(path).absolute() for path in paths}
    shared = os.path.commonpath([path.parent for path in absolute.values()]) if absolute else ""
    root = folder.absolute() if folder is not None else shared
    often = Counter(str(place.with_suffix("")).lower() for place in absolute.values())
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for path, place in sorted(absolute.items()):
        short = place.with_suffix("")
        plain = (short if often[str(short).lower()] == 1 else place).relative_to(root)
        name, copy = plain, 2
        while str(name).lower() in taken:
            name, copy = plain.with_name(f"{plain.name}_{copy}"), copy + 1
        taken.add(str(name).lower())
        names[path] = name
    return names


@dataclass(eq=False)
class PictureWriter:
    """Writes what is wanted (``save``, out of ``SAVES``) of one image after the other into ``output/KIND/NAME``."""

    output: Path
    label_space: LabelSpace
    save: Sequence[str]
    written: list[Path] = field(default_factory=list, init=False)

    def path(self, kind: str, name: Path) -> Path:
        return with_ending(self.output / kind / name, {"labels": ".png", "probabilities": ".npy"}.get(kind, ".jpg"))

    def write(
        self, name: Path, image: Tensor, truth: Tensor | None, prediction: Tensor, only_labels: bool = False
    ) -> None:
        space = self.label_space
        if "labels" in self.save:
            self.write_labels(self.path("labels", name), prediction)
        if "overlays" in self.save and not only_labels:
            self.put(self.path("overlays", name), jpeg(overlay(image, prediction, space)))
        if "panels" in self.save and truth is not None and not only_labels:
            self.put(self.path("panels", name), jpeg(panel(image, truth, prediction, space)))

    def write_labels(self, path: Path, prediction: Tensor) -> None:
        self.put(path, lambda partial: label_png(prediction, self.label_space, partial))

    def put(self, path: Path, save: Callable[[Path], object]) -> None:
        write_file(path, save)
        self.written.append(path)


def progress_bar() -> Progress:
    """How far it is, how fast (the field ``rate`` of a task) and how long it will take; on the first rank."""
    words, speed = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    return Progress(words, BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(), disable=rank() != 0)


def check_model(model: nn.Module, label_space: LabelSpace) -> None:
    """Raise ProtosegError unless the model has the classes of the label space."""
    num_classes = getattr(model, "num_classes", label_space.num_classes)
    if num_classes != label_space.num_classes:
        text = f"evaluation: expected a model of the {label_space.num_classes} classes of label space"
        got = f"{label_space.name!r}, got one of {num_classes}"
        raise ProtosegError(f"{text} {got}; choose the data or the checkpoint that belong together")


def jpeg(picture: Picture) -> Callable[[Path], None]:
    """What ``write_file`` needs to write a picture; one with longer sides than a JPEG may have is made smaller."""

    def save(path: Path) -> None:
        if max(picture.shape) <= _JPEG_SIDE:  # Pillow would copy it, to four bytes a pixel
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 92, colorsubsampling="420"))
            return
        image = Image.fromarray(picture)
        image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        image.save(path, format="JPEG", quality=92)

    return save
