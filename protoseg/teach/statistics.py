"""What is kept of the training images, so that a class can be taught to a network that has left them."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import look
from protoseg.checkpoint import check_same_classes
from protoseg.data import SegmentationDataset
from protoseg.data.statistics import spread
from protoseg.functional.discriminant import Moments, class_calibration, moments, statistics
from protoseg.functional.sampling import pixel_rows
from protoseg.models.segmentor import Segmentor
from protoseg.nn.discriminant import frozen_maps
from protoseg.teach.edit import editable_memories
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError

MAX_IMAGES = 100  # evenly spread over the training split: as good as all 367 of CamVid (docs/results.md)
MAX_CELLS = 2500  # of each image, evenly spread: more say the same again


def image_sums(model: Segmentor, image: Tensor, label: Tensor) -> tuple[Moments, Tensor, Tensor, Tensor]:
    """Sums of one image, ``c H W``, with its labels ``H W``, and of its cells what ``class_calibration`` takes."""
    scene = look(model, image, label)
    cells = scene.labelled.nonzero().flatten()
    cells = cells[:: max(1, -(-len(cells) // MAX_CELLS))]
    maps, logits = frozen_maps(scene.output, model, cells).cpu(), pixel_rows(scene.output.logits)[cells].cpu()
    truth, (best, predicted) = scene.cell_label[cells].cpu(), logits.float().max(1)
    rest = logits.float().scatter(1, predicted[:, None], -torch.inf).logsumexp(1)
    return moments(maps, truth, model.num_classes), best - rest, predicted, predicted == truth


def with_statistics(
    file: TrainedFile, dataset: SegmentationDataset, device: torch.device | str = "cpu", title: str = ""
) -> TrainedFile:
    """The checkpoint with statistics of its frozen maps from its training images, labelled with its classes.

    ``title`` is of the progress bar: none without it. Raises ProtosegError: images of other classes, a checkpoint that
    has taught classes already, or as :func:`protoseg.functional.discriminant.statistics`.
    """
    editable_memories(file)
    made = {}
    if any(known is not None and known.taught.any() for known in map(file.statistics, file.networks)):
        raise ProtosegError(
            f"checkpoint {file.path}: expected one without taught classes, whose places are among its statistics, got "
            "some: make statistics of the checkpoint before, and teach them again"
        )
    check_same_classes(file.path, file.label_space, dataset.label_space)
    for network in file.networks:
        seen: list[list[Tensor]] = []
        model, total = file.model(network).to(device), None
        for index in track(spread(len(dataset), MAX_IMAGES), title, disable=not title):
            image, label, _ = dataset[index]
            one, *said = image_sums(model, image, label)
            total = one if total is None else total.plus(one)
            seen.append(said)
        assert total is not None
        log_odds, predicted, right = map(torch.cat, zip(*seen, strict=True))
        made[network] = statistics(total, class_calibration(log_odds, predicted, right, model.num_classes))._asdict()
    return replace(file, content=file.content | {"protoseg": file.content["protoseg"] | {"statistics": made}})
