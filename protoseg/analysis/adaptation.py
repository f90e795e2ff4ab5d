"""What adaptation changed: several networks on the same target images, their confusions and their pictures."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from protoseg.analysis.stream import Loader, images
from protoseg.evaluation import pictures
from protoseg.evaluation.metrics import Scores, SegmentationMetrics, scores
from protoseg.evaluation.predictor import Predictor, evaluating
from protoseg.models.segmentor import Segmentor
from protoseg.types import IGNORE_INDEX, LabelSpace

GAINED = (30, 110, 220)


class Compared(NamedTuple):
    """One image as in :class:`protoseg.analysis.stream.Scene`, and each network's class ids for it, int64 ``H W``."""

    number: int
    name: str
    image: Tensor
    label: Tensor
    predictions: dict[str, Tensor]


def compared(models: Mapping[str, Segmentor], loader: Loader, predictor: Predictor | None = None) -> Iterator[Compared]:
    """Every image of a loader with the predictions of every ``Segmentor``, all of them on one device."""
    predictor = predictor or Predictor()
    device = next(next(iter(models.values())).parameters()).device
    with evaluating(*models.values()):
        for number, name, image, label in images(loader, "comparing"):
            batch, size = image.unsqueeze(0).to(device), torch.tensor([label.shape])
            predictions = {network: predictor.predict(model, batch, size)[0].cpu() for network, model in models.items()}
            yield Compared(number, name, image, label, predictions)


class ConfusionCollector:
    """Scores of every network over a stream."""

    def __init__(self, label_space: LabelSpace, unlabelled: Sequence[int] = ()) -> None:
        self.unlabelled = unlabelled  # see :func:`protoseg.evaluation.metrics.scores`
        self.metrics: dict[str, SegmentationMetrics] = defaultdict(lambda: SegmentationMetrics(label_space))

    def update(self, seen: Compared) -> None:
        for network, prediction in seen.predictions.items():
            self.metrics[network].update(prediction, seen.label)

    def scores(self) -> dict[str, Scores]:
        """By network."""
        return {key: scores(it.compute()["confusion"], self.unlabelled, it.parents) for key, it in self.metrics.items()}


def change_map(image: Tensor, truth: Tensor, before: Tensor, after: Tensor) -> pictures.Picture:
    """What got right in blue, what got wrong in red, on a pale grey photo ``3 H W``; ignored pixels dark. ``H W 3``."""
    was, now = before == truth, after == truth
    return pictures.marked(image, truth == IGNORE_INDEX, {GAINED: now & ~was, pictures.WRONG: was & ~now})


def comparison_panel(seen: Compared, label_space: LabelSpace) -> pictures.Picture:
    """Photo, truth, each network's prediction, and what the last one changed against the first, side by side."""
    counted = seen.label != IGNORE_INDEX
    image = pictures.rgb(seen.image, label_space.shown)
    tiles = {"image": pictures.as_picture(image)}
    if counted.any():
        tiles["truth"] = pictures.overlay(image, seen.label, label_space)
    for network, prediction in seen.predictions.items():
        share = f" · {100 * (prediction == seen.label)[counted].double().mean():.1f} % right" if counted.any() else ""
        tiles[f"{network}{share}"] = pictures.overlay(image, prediction, label_space)
    predictions = list(seen.predictions.values())
    if counted.any() and len(predictions) > 1:
        tiles["blue: gained, red: lost"] = change_map(image, seen.label, predictions[0], predictions[-1])
    return pictures.tile_row(tiles, label_space, [seen.label, *predictions])


def iou_figure(found: Mapping[str, Scores], label_space: LabelSpace) -> Figure:
    """The IoU of each class, a bar for each network, classes that gained most first; mIoU in the legend.

    Of more than 40 classes, the 20 that gained most and the 20 that lost most, by the last network against the first.
    """
    iou = 100 * np.stack([entry["IoU"].numpy() for entry in found.values()])
    gain = np.nan_to_num(iou[-1]) - np.nan_to_num(iou[0])
    order = [int(i) for i in np.argsort(-gain, kind="stable") if not np.isnan(iou[:, i]).all()]
    if len(order) > 40:
        order = order[:20] + order[-20:]
    figure = pictures.empty_figure(8, 1.4 + 0.42 * len(order))
    axes = figure.add_subplot()
    names, height = list(found), 0.8 / len(found)
    for i, (network, entry) in enumerate(found.items()):
        color = ("0.65", "#3b6fb6", "#12305c")[min(i, 2)]
        places = np.arange(len(order)) + (i - (len(found) - 1) / 2) * height
        values = np.nan_to_num(iou[i, order])
        axes.barh(places, values, 0.92 * height, color=color, label=f"{network}, mIoU {100 * entry['mIoU']:.1f}")
    for place, i in enumerate(order):
        x = np.nanmax(iou[:, i]) + 1
        axes.text(x, place, f"{gain[i]:+.1f}", va="center", fontsize=9, color="0.2" if gain[i] >= 0 else "#c0203a")
    pictures.name_bars(axes, [label_space.classes[i] for i in order])
    axes.set(xlim=(0, 108), xlabel="IoU (%)")
    pictures.tidy(axes, "x")
    figure.legend(loc="outside lower center", ncols=len(found), frameon=False, fontsize=9)
    axes.set_title(f"IoU of each class; numbers: {names[-1]} against {names[0]}", fontsize=11)
    return figure
