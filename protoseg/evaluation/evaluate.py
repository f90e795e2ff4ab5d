"""Judge a model on labelled images, and write down what came out."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from protoseg import __version__
from protoseg.distributed import rank, world_size
from protoseg.evaluation.metrics import SegmentationMetrics, scores, subset_means
from protoseg.evaluation.predictor import Predictor, SegmentationModel, evaluating
from protoseg.evaluation.tables import print_report, summary, write_report
from protoseg.evaluation.writer import PictureWriter, check_model, output_names, progress_bar
from protoseg.types import Batch, LabelSpace, ProtosegError

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
    found = scores(metrics.compute()["confusion"], unlabelled)
    result = summary(found, label_space) | subset_means(found["IoU"], label_space, subsets or {})
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
        write_report(Path(output), result, found["confusion"].cpu(), label_space)
        print_report(result, Path(output))
    return result
