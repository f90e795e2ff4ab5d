"""How well a class can be added without training, measured: IoU after so many images, over several draws of these."""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from hydra._internal.grammar.utils import escape_special_characters
from torch import nn

from protoseg.analysis.stream import Loader, scenes
from protoseg.data import SegmentationDataset
from protoseg.data.statistics import class_statistics
from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.models.segmentor import Segmentor
from protoseg.teach.edit import apply_edit, reading_again
from protoseg.teach.operations import add_classes
from protoseg.text import command
from protoseg.trained import TrainedFile
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError

MIN_SHARE = 1e-3  # images show a class where it covers at least this share of them


class Score(NamedTuple):
    """IoU of the class, and mean IoU of all others, in 0 to 1; NaN for a class that the model does not have."""

    iou: float
    others: float


class Trial(NamedTuple):
    """What :func:`trial` found."""

    before: Score  # of the checkpoint as it is, with the class's pixels ignored
    added: dict[int, list[Score]]  # number of images -> a score for every draw of so many
    trained: Score | None  # of a checkpoint trained with the class, if given
    images: tuple[int, int]  # of the training split that show the class, and of the validation split


def trial(
    file: TrainedFile,
    name: str,
    shots: Sequence[int] = (1, 5, 20),
    draws: int = 3,
    trained: TrainedFile | None = None,
    root: str | None = None,
    device: torch.device | str = "cpu",
) -> Trial:
    """Add a class to a checkpoint from few of its data's training images, and judge it on the validation split.

    Images are drawn by chance, by seeds 0, 1, …, among those that show the class; those of a small draw are among those
    of a large one. All are seen whole, at one scale.

    ``file`` was trained without the class (``data.relabel={NAME: null}``), ``trained`` with it, to compare with.
    ``root`` is the folder of the data, where it is not where the checkpoint's run found it.

    Raises ProtosegError: the checkpoint has the class, its data has not, too few images show it; as ``add_classes``.
    """
    data, space = data_with(file, name, root)
    train, val = data.dataset(data.train_split), data.eval_dataloader(data.val_split)
    candidates = showing(train, space.classes.index(name))
    if max(shots) > len(candidates) or min(shots) < 1 or draws < 1:
        text = f"trial: expected 1 to {len(candidates)} images, as many as show {name!r}, and at least one draw"
        raise ProtosegError(f"{text}, got {', '.join(map(str, shots))} images, {draws} draws")
    taught = {}
    for draw in range(draws):
        order = random.Random(draw).sample(candidates, len(candidates))
        for count in shots:
            few = copy.copy(train)
            few.samples = [train.samples[i] for i in sorted(order[:count])]
            edit, _ = add_classes(file, few, [name], draw, device, f"{count} images, draw {draw}")
            larger = replace(file, content=apply_edit(file.content, edit)).model().to(device)
            taught[count, draw] = cast(nn.Module, larger.discriminant)
    before, after = _judge_additions(file.model().to(device), taught, val, space)
    added = {count: [after[count, draw] for draw in range(draws)] for count in shots}
    judged = None
    if trained is not None:
        mapped = torch.tensor(space.ids(trained.label_space.classes, f"classes of {trained.path}"))
        metric = SegmentationMetrics(space)
        for scene in scenes(trained.model().to(device), val, "validating"):
            metric.update(mapped[scene.prediction.cpu()], scene.label.cpu())
        judged = _score(metric)
    return Trial(before, added, judged, (len(candidates), len(val.dataset)))  # type: ignore[arg-type]


def data_with(file: TrainedFile, name: str, root: str | None = None) -> tuple[Any, LabelSpace]:
    """The data that the checkpoint is judged on, read as its classes and, last, the new one."""
    target = file.datamodule(root, lambda data: reading_again(data, [name]), num_workers=0).target
    there, space = target.label_space, file.label_space
    if name in space.classes or name not in there.classes:
        text = f"trial: expected a class that the data has and {file.path} was not trained with, got {name!r}"
        known = f"the data has {', '.join(there.classes)}, the checkpoint {', '.join(space.classes)}"
        remedy = command(f"data.relabel={{{escape_special_characters(name)}: null}}")
        raise ProtosegError(f"{text}; {known}: train with {remedy}")
    space = LabelSpace(space.name, (*space.classes, name), (*space.colors, there.colors[there.classes.index(name)]))
    changed = file.content["protoseg"].get("relabel", {}) | {name: name}  # classes merged or removed since
    target.map_classes(space, {known: changed.get(known, known) for known in there.classes})
    return target, space


def showing(dataset: SegmentationDataset, label: int) -> list[int]:
    """The images that show a class, see ``MIN_SHARE``."""
    counts = class_statistics(dataset).counts
    return np.flatnonzero(counts[:, label] > MIN_SHARE * counts.sum(1)).tolist()


@torch.no_grad()
def _judge_additions(
    model: Segmentor, taught: Mapping[tuple[int, int], nn.Module], val: Loader, space: LabelSpace
) -> tuple[Score, dict[tuple[int, int], Score]]:
    """Scores without the class (its pixels ignored), and with each of some discriminants that know it, in one pass."""
    new = space.num_classes - 1
    without, metrics = SegmentationMetrics(space), {key: SegmentationMetrics(space) for key in taught}
    for scene in scenes(model, val, "validating"):
        truth = scene.label.cpu()
        without.update(scene.prediction.cpu(), truth.where(truth != new, IGNORE_INDEX))
        # The logit that its prototypes would give the class counts in none of them.
        larger = scene.output._replace(logits=F.pad(scene.output.logits, (0, 0, 0, 0, 0, 1)))
        for key, discriminant in taught.items():
            metrics[key].update(scene.at_pixels(discriminant(larger).logits[0]).argmax(0).cpu(), truth)
    return _score(without), {key: _score(metric) for key, metric in metrics.items()}


def _score(metric: SegmentationMetrics) -> Score:
    iou = metric.compute()["IoU"]
    return Score(float(iou[-1]), float(iou[:-1].nanmean()))
