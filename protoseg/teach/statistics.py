"""What is kept of the training images, so that a class can be taught to a network that has left them."""

from dataclasses import replace

import torch
from rich.progress import track
from torch import Tensor

from protoseg.analysis.stream import Scene, look
from protoseg.checkpoint import check_same_classes
from protoseg.data import SegmentationDataset
from protoseg.data.statistics import spread
from protoseg.functional.discriminant import SURE, class_calibration, moments, set_thresholds, statistics
from protoseg.functional.sampling import pixel_rows
from protoseg.models.segmentor import Segmentor
from protoseg.nn.discriminant import frozen_maps
from protoseg.teach.edit import editable_memories
from protoseg.trained import TrainedFile
from protoseg.types import IGNORE_INDEX, ProtosegError

MAX_IMAGES = 100  # evenly spread over the training split: as good as all 367 of CamVid (docs/results.md)
MAX_CELLS = 2500  # of each image, evenly spread: more say the same again


def in_bad_light(image: Tensor, generator: torch.Generator) -> Tensor:
    """An image, ``c H W``, made darker and noisier, as in dusk or rain, by chance."""
    whole = 255 if image.dtype == torch.uint8 else 1
    gamma, gain, noise = torch.rand(3, generator=generator).tolist()
    seen = (image / whole) ** (1 + 1.5 * gamma) * (0.4 + 0.6 * gain)
    seen = seen + 0.05 * noise * torch.randn(image.shape[1:], generator=generator)
    return (seen.clamp(0, 1) * whole).to(image.dtype)


def chosen_cells(scene: Scene) -> Tensor:
    """Labelled cells of an image, int64 ``n``, evenly spread, at most ``MAX_CELLS``."""
    cells = scene.labelled.nonzero().flatten()
    return cells[:: max(1, -(-len(cells) // MAX_CELLS))]


def judged_cells(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """What ``class_calibration`` takes of an image's :func:`chosen_cells`."""
    cells = chosen_cells(scene)
    logits, truth = pixel_rows(scene.output.logits)[cells].cpu().float(), scene.cell_label[cells].cpu()
    best, predicted = logits.max(1)
    rest = logits.scatter(1, predicted[:, None], -torch.inf).logsumexp(1)
    mean = (best - rest).clamp(-SURE, SURE).mean().expand(len(cells))
    return torch.stack([best - rest, mean], 1), predicted, predicted == truth


def own_probabilities(model: Segmentor, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Of some labelled pixels of an image, evenly spread, the probability of their class, and that class."""
    scene = look(model, image, label)
    counted, logits = scene.label != IGNORE_INDEX, scene.at_pixels(scene.output.logits[0].float())
    step = max(1, int(counted.sum()) // MAX_CELLS)
    scores, truth = (values[..., counted][..., ::step] for values in (logits, scene.label))
    return scores.softmax(0).gather(0, truth[None])[0].cpu(), truth.cpu()


def with_statistics(
    file: TrainedFile,
    dataset: SegmentationDataset,
    device: torch.device | str = "cpu",
    title: str = "",
    held_out: SegmentationDataset | None = None,
) -> TrainedFile:
    """The checkpoint with statistics of its frozen maps from its training images, labelled with its classes.

    By every second image of ``held_out``, which were not trained on, label sets are calibrated
    (:func:`protoseg.functional.discriminant.set_thresholds`); the others are left to judge these by. ``title`` is of
    the progress bar: none without it. Raises ProtosegError: images of other classes, a checkpoint that has taught
    classes already, or as :func:`protoseg.functional.discriminant.statistics`.
    """
    editable_memories(file)
    made = {}
    if any(known is not None and known.taught.any() for known in map(file.statistics, file.networks)):
        text = f"checkpoint {file.path}: expected one without taught classes, whose places are among its statistics"
        raise ProtosegError(f"{text}, got some: make statistics of the checkpoint before, and teach them again")
    for data in (dataset, held_out or dataset):
        check_same_classes(file.path, file.label_space, data.label_space)
    for network in file.networks:
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        model, total = file.model(network).to(device), None
        generator = torch.Generator().manual_seed(0)
        for number, index in enumerate(track(spread(len(dataset), MAX_IMAGES), title, disable=not title)):
            image, label, _ = dataset[index]
            scene = look(model, image, label)
            cells = chosen_cells(scene)
            maps = frozen_maps(scene.output, scene.stride, model.feature_strides, cells).cpu()
            one = moments(maps, scene.cell_label[cells].cpu(), model.num_classes)
            total = one if total is None else total.plus(one)
            seen.append(judged_cells(scene))
            if number % 2:  # the confidence shall be right in light that was not trained in, too
                seen.append(judged_cells(look(model, in_bad_light(image, generator), label)))
        assert total is not None
        log_odds, predicted, right = map(torch.cat, zip(*seen, strict=True))
        known = statistics(total, class_calibration(log_odds, predicted, right, model.num_classes))
        if held_out is not None:
            chosen = (held_out[2 * i] for i in spread((len(held_out) + 1) // 2, MAX_IMAGES))
            own = [own_probabilities(model, image, label) for image, label, _ in chosen]
            probability, truth = map(torch.cat, zip(*own, strict=True))
            known = known._replace(sets=set_thresholds(probability, truth, model.num_classes))
        made[network] = known._asdict()
    return replace(file, content=file.content | {"protoseg": file.content["protoseg"] | {"statistics": made}})
