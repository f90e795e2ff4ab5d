"""What is kept of the training images, so that a class can be taught to a network that has left them."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.progress import track

from protoseg.analysis.stream import look
from protoseg.checkpoint import check_same_classes
from protoseg.data import SegmentationDataset
from protoseg.data.statistics import spread
from protoseg.functional.discriminant import Moments, moments, statistics
from protoseg.functional.sampling import pixel_rows
from protoseg.models.segmentor import Segmentor
from protoseg.nn.discriminant import frozen_maps
from protoseg.teach.edit import editable_memories
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError

MAX_IMAGES = 100  # evenly spread over the training split: as good as all 367 of CamVid (docs/results.md)
MAX_CELLS = 2500  # of each image, evenly spread: more say the same again


def image_moments(model: Segmentor, image: torch.Tensor, label: torch.Tensor) -> Moments:
    """The sums of one image, ``c H W``, with its labels ``H W``; those of several add up (:meth:`Moments.plus`)."""
    scene = look(model, image, label)
    cells = scene.labelled.nonzero().flatten()
    cells = cells[:: max(1, -(-len(cells) // MAX_CELLS))]
    maps = pixel_rows(frozen_maps(scene.output, model))
    return moments(maps[cells].cpu(), scene.cell_label[cells].cpu(), model.num_classes)


def with_statistics(
    file: TrainedFile, dataset: SegmentationDataset, device: torch.device | str = "cpu", title: str = ""
) -> TrainedFile:
    """The checkpoint with statistics of its frozen maps from its training images, labelled with its classes.

    ``title`` is of the progress bar: none without it. Raises ProtosegError: images of other classes, a checkpoint that
    has taught classes already, or as :func:`protoseg.functional.discriminant.statistics`.
    """
    networks, made = [*editable_memories(file)], {}
    if any(known is not None and known.taught.any() for known in map(file.statistics, networks)):
        raise ProtosegError(
            f"checkpoint {file.path}: expected one without taught classes, whose places are among its statistics, got "
            "some: make statistics of the checkpoint before, and teach them again"
        )
    check_same_classes(file.path, file.label_space, dataset.label_space)
    for network in networks:
        model, total = file.model(network).to(device), None
        for index in track(spread(len(dataset), MAX_IMAGES), title, disable=not title):
            image, label, _ = dataset[index]
            one = image_moments(model, image, label)
            total = one if total is None else total.plus(one)
        assert total is not None
        made[network] = statistics(total)._asdict()
    return replace(file, content=file.content | {"protoseg": file.content["protoseg"] | {"statistics": made}})
