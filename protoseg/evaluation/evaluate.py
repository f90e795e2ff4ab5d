"""Judge a model on labelled images, and write down what came out.

Every file is written beside its place and then renamed, image by image, so that an interrupted run leaves only
whole files.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from protoseg import __version__
from protoseg.distributed import rank, world_size
from protoseg.evaluation.metrics import SegmentationMetrics, subset_means
from protoseg.evaluation.metrics import scores as count_scores
from protoseg.evaluation.pictures import Picture, label_png, overlay, panel
from protoseg.evaluation.predictor import Predictor, SegmentationModel, evaluating
from protoseg.evaluation.tables import print_report, summary, write_report
from protoseg.files import with_ending, write_file
from protoseg.types import Batch, LabelSpace, ProtosegError

_JPEG_SIDE = 65_500  # pixels, libjpeg's limit
SAVES = ("overlays", "panels", "labels")


def evaluate(
    model: nn.Module,
    dataloader: DataLoader[Batch],
    predictor: Predictor,
    label_space: LabelSpace,
    output: str | Path,
    device: torch.device | str,
    save: Sequence[str] = SAVES,
    max_overlays: int | None = None,
    subsets: Mapping[str, Sequence[str]] | None = None,
    observe: Callable[[str, Tensor, Tensor, Tensor], None] | None = None,
    unlabelled: Sequence[int] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Predict every image of a loader, compare with the labels, print and write the report.

    Writes into ``output``: ``metrics.json``, ``table.csv``, ``table.md``, ``confusion.npy``, ``confusion.csv`` (rows
    are the truth), ``confusion.png``; per image ``labels/NAME.png`` (class ids, see ``label_png``),
    ``overlays/NAME.jpg`` (prediction over the photo) and ``panels/NAME.jpg`` (photo, truth, prediction, errors).

    Returns what ``metrics.json`` holds; numbers are in 0 to 1, NaN (null in the file) where there is nothing to count.

    Args:
        model: a ``SegmentationModel``; moved to ``device``, run in eval mode, then left in the mode it was in.
        dataloader: its data set lists its files in ``samples``, (image, mask) paths.
        save: which pictures to write, out of ``SAVES``.
        max_overlays: write overlays and panels of the first so many images only; None: of all.
        subsets: further means of the IoU, see :func:`protoseg.evaluation.metrics.subset_means`.
        observe: is given each image's name, photo, truth and prediction, on the CPU and without padding.
        unlabelled: classes that these data do not label: they have no IoU, and count in no mean.
        facts: what else ``metrics.json`` is to say.

    Raises ProtosegError: model, data and label space do not fit, an unknown name in ``save``, or a file that cannot be
    read or written.
    """
    check_model(model, label_space)
    if unknown := sorted(set(save) - set(SAVES)):
        raise ProtosegError(f"save: expected names out of {', '.join(SAVES)}, got {', '.join(unknown)}")
    paths = [str(sample[0]) for sample in cast(Any, dataloader.dataset).samples]
    names, pictures = output_names(paths), PictureWriter(Path(output), label_space, save)
    left = math.inf if max_overlays is None else math.ceil(max_overlays / world_size())
    metrics = SegmentationMetrics(label_space).to(device)
    started, done = time.perf_counter(), 0
    with evaluating(model.to(device)), progress_bar() as progress:
        task = progress.add_task("evaluating", total=len(range(rank(), len(paths), world_size())), rate="")
        for batch in dataloader:
            images = batch.image.to(device, non_blocking=True)
            for i, prediction in enumerate(predictor.predict(cast(SegmentationModel, model), images, batch.size)):
                height, width = prediction.shape
                truth, image = batch.label[i, :height, :width], batch.image[i, :, :height, :width]
                metrics.update(prediction, truth.to(device))
                name, seen = batch.name[i], (image, truth.cpu(), prediction.cpu())
                pictures.write(names[name], *seen, only_labels=left <= 0)
                left, done = left - 1, done + 1
                if observe is not None:
                    observe(name, *seen)
            progress.update(task, completed=done, rate=f"{done / (time.perf_counter() - started):.1f} images/s")
    scores = count_scores(metrics.compute()["confusion"], unlabelled)
    result = summary(scores, label_space) | subset_means(scores["IoU"], label_space, subsets or {})
    seconds = time.perf_counter() - started
    result |= {
        "label_space": label_space.name,
        "classes_in_means": [entry["name"] for entry in result["classes"] if not math.isnan(entry["IoU"])],
        "classes_not_labelled": [label_space.classes[i] for i in unlabelled],
        "data": os.path.commonpath([Path(path).absolute().parent for path in paths]) if paths else None,
        "split": getattr(dataloader.dataset, "split", None),
        "version": __version__,
        **(facts or {}),
        "num_images": len(paths),
        "inference": predictor.settings(),
        "device": str(device),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(paths) / seconds, 3),
    }
    if rank() == 0:
        write_report(Path(output), result, scores["confusion"].cpu(), label_space)
        print_report(result, Path(output))
    return result


def output_names(paths: Sequence[str], folder: Path | None = None) -> dict[str, Path]:
    """A name for the outputs of each image: its path relative to ``folder``, without suffix; None: the one all share.

    Images that would get the same name (``a.jpg`` and ``a.png``, or ``A.jpg`` on some disks) get ``_2``, ``_3``, ….
    """
    absolute = {path: Path(path).absolute() for path in paths}
    shared = os.path.commonpath([path.parent for path in absolute.values()]) if absolute else ""
    root = folder.absolute() if folder is not None else shared
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for path, place in sorted(absolute.items()):
        plain = place.relative_to(root).with_suffix("")
        name, copy = plain, 2
        while str(name).lower() in taken:
            name, copy = plain.with_name(f"{plain.name}_{copy}"), copy + 1
        taken.add(str(name).lower())
        names[path] = name
    return names


class PictureWriter:
    """Writes what is wanted (``save``, out of ``SAVES``) of one image after the other into ``output/KIND/NAME``."""

    def __init__(self, output: Path, label_space: LabelSpace, save: Sequence[str]) -> None:
        self.output, self.label_space, self.save = output, label_space, save
        self.written: list[Path] = []

    def path(self, kind: str, name: Path) -> Path:
        ending = {"labels": ".png", "probabilities": ".npy"}.get(kind, ".jpg")
        return with_ending(self.output / kind / name, ending)

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
        raise ProtosegError(
            f"evaluation: expected a model of the {label_space.num_classes} classes of label space "
            f"{label_space.name!r}, got one of {num_classes}; choose the data or the checkpoint that belong together"
        )


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
