"""Judge a model on labelled images, and write down what came out: JSON, CSV, Markdown, a table and a picture."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.text import Text
from torch import Tensor, nn
from torch.utils.data import DataLoader

from protoseg import __version__
from protoseg.distributed import rank, world_size
from protoseg.evaluation.metrics import Scores, SegmentationMetrics, scores, subset_means
from protoseg.evaluation.pictures import CONFUSION, confusions_figure, frequent_classes, short_name
from protoseg.evaluation.predictor import Predictor, evaluating
from protoseg.evaluation.writer import PictureWriter, check_model, output_names, progress_bar
from protoseg.files import without_nan, write_file, write_json, write_text
from protoseg.functional.hierarchy import ancestors
from protoseg.text import Terminal, markdown_table, write_csv
from protoseg.types import Batch, LabelSpace, ProtosegError

SAVES = ("overlays", "panels", "labels")
_HEADER = ("class", "IoU (%)", "accuracy (%)", "share of pixels (%)")


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

    The model is moved to ``device``, run in eval mode, then left in the mode it was in; the loader's data set lists its
    (image, mask) paths in ``samples``. ``save`` is out of ``SAVES``, overlays and panels of ``max_overlays`` images.
    ``subsets`` are of :func:`protoseg.evaluation.metrics.subset_means`; ``observe`` is given each image's name, photo,
    truth and prediction, on the CPU and without padding; classes ``unlabelled`` in these data have no IoU and count in
    no mean; ``facts`` is what else ``metrics.json`` is to say. Raises ProtosegError: model, data and label space do not
    fit, an unknown name in ``save``, or a file that cannot be read or written.
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
            for i, prediction in enumerate(predictor.predict(model, images, batch.size)):
                height, width = prediction.shape
                truth, image = batch.label[i, :height, :width], batch.image[i, :, :height, :width]
                metrics.update(prediction, truth.to(device))
                name, seen = batch.name[i], (image, truth.cpu(), prediction.cpu())
                pictures.write(names[name], *seen, only_labels=left <= 0)
                left, done = left - 1, done + 1
                if observe is not None:
                    observe(name, *seen)
            progress.update(task, completed=done, rate=f"{done / (time.perf_counter() - started):.1f} images/s")
    found = scores(metrics.compute()["confusion"], unlabelled, label_space.parents)
    result = summary(found, label_space) | subset_means(found["IoU"], label_space, subsets or {})
    seconds = time.perf_counter() - started
    result |= {
        "label_space": label_space.name,
        "classes_in_means": [e["name"] for e in result["classes"][: label_space.leaves] if not math.isnan(e["IoU"])],
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
        write_report(Path(output), result, found["confusion"].cpu(), label_space)
        print_report(result, Path(output))
    return result


def summary(scores: Scores, label_space: LabelSpace) -> dict[str, Any]:
    """The scores as plain values: four numbers, and one entry per class."""
    under = ancestors(label_space.parents or [-1] * label_space.num_classes).T.long()  # a group counts what is below
    columns = (scores["IoU"], scores["accuracy"], *(under @ scores["confusion"].cpu().sum(dim) for dim in (1, 0)))
    names = ("name", "IoU", "accuracy", "true_pixels", "predicted_pixels")
    rows = zip(label_space.classes, *(column.tolist() for column in columns), strict=True)
    means = {name: value for name, value in scores.items() if isinstance(value, float)}
    classes = [dict(zip(names, row, strict=True)) for row in rows]
    return means | {"pixels": int(scores["confusion"].sum()), "classes": classes}


def write_report(output: Path, result: dict[str, Any], confusion: Tensor, label_space: LabelSpace) -> None:
    """Write the numbers, the tables and the confusion matrix (see ``evaluate``) into ``output``."""
    counts = confusion.numpy()
    write_json(output / "metrics.json", result)
    plain, columns = without_nan(result), ["name", "IoU", "accuracy", "true_pixels"]
    rows = [[entry[column] for column in columns] for entry in plain["classes"]]
    means = ["mean", plain["mIoU"], plain["mean_accuracy"], int(counts.sum())]
    write_file(output / "table.csv", lambda path: write_csv(path, [["class", *columns[1:]], *rows, means]))
    text = f"{markdown_table(_HEADER, _percent_rows(result))}\n\n{_overall(result)}, {result['num_images']} images\n"
    write_text(output / "table.md", text)
    write_file(output / "confusion.npy", lambda path: np.save(path, counts))
    named = [[name, *row] for name, row in zip(label_space.classes, counts.tolist(), strict=True)]
    header = ["true \\ predicted", *label_space.classes]
    write_file(output / "confusion.csv", lambda path: write_csv(path, [header, *named]))
    write_file(output / "confusion.png", confusions_figure({CONFUSION: confusion}, label_space).savefig)


def print_report(result: dict[str, Any], output: Path) -> None:
    """Print the table per class (of more than 255, the most frequent), the four numbers, and where the report lies."""
    *rows, means = _percent_rows(result)
    chosen = frequent_classes(np.array([entry["true_pixels"] for entry in result["classes"]]))
    shown = [[short_name(name), *numbers] for name, *numbers in (rows[i] for i in chosen)]
    if len(chosen) < len(rows):
        shown.append([f"{len(rows) - len(chosen)} more: table.csv", "", "", ""])
    terminal, title = Terminal(), f"{result['num_images']} images, {result['images_per_second']:.1f} images/s"
    terminal.table(title, _HEADER, [*shown, [Text(cell, "bold") for cell in means]])
    terminal.print(_overall(result))
    terminal.say(f"Report: {output}")


def _percent_rows(result: dict[str, Any]) -> list[list[str]]:
    """Class, IoU, accuracy and share of the true pixels, in percent, the means last."""
    pixels = result["pixels"] or math.nan
    rows = [[e["name"], e["IoU"], e["accuracy"], e["true_pixels"] / pixels] for e in result["classes"]]
    rows.append([f"mean of {len(result['classes_in_means'])}", result["mIoU"], result["mean_accuracy"], math.nan])
    shown = [[name, *map(_percent, numbers)] for name, *numbers in rows]
    return [[*row[:3], "not labelled here"] if row[0] in result["classes_not_labelled"] else row for row in shown]


def _percent(number: float) -> str:
    return "–" if math.isnan(number) else f"{100 * number:.2f}"


def _overall(result: dict[str, Any]) -> str:
    keys = [*(key for key in result if key.startswith("mIoU")), "pixel_accuracy", "mean_accuracy", "fw_IoU"]
    return " · ".join(f"{key} {_percent(result[key])} %" for key in keys)
