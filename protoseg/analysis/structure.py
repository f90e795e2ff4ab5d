"""How the prototypes share the pixels out among themselves, how alike they are, which are dead and which are double."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from protoseg.analysis.stream import Scene
from protoseg.evaluation.pictures import MANY_CLASSES, class_tables, empty_figure, figure_name, name_bars
from protoseg.functional.prototypes import nearest_class_cosine, within_class_cosine
from protoseg.types import IGNORE_INDEX, LabelSpace

DEAD_BELOW = 0.001  # of the class's pixels
DUPLICATE_ABOVE = 0.98  # cosine: 11 degrees apart
_COSINES: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}


class Occupancy(NamedTuple):
    """Cells of the grid for which each prototype is the nearest of its class, int64."""

    true: Tensor  # ``c k``: among the cells that truly are of the class
    predicted: Tensor  # ``c k``: among those predicted as the class
    most_cells: Tensor  # ``c``: most cells predicted right as each class in one image
    example: Tensor  # ``c``: index of that image in the stream; -1 where there is none

    def share(self, counts: Tensor) -> Tensor:
        """``true`` or ``predicted`` as shares of each class, fp64 ``c k``; NaN for a class without a cell."""
        return counts.double() / counts.sum(1, keepdim=True)

    @property
    def counted(self) -> Tensor:
        """``true``, or, where the images came without labels, ``predicted``."""
        return self.true if self.true.any() else self.predicted


class OccupancyCollector:
    """Counts over a stream what :class:`Occupancy` holds. A cell goes to its nearest prototype, without Sinkhorn."""

    def __init__(self, num_classes: int, num_prototypes: int) -> None:
        self.shape = (num_classes, num_prototypes)
        self.counts = torch.zeros(2, num_classes * num_prototypes, dtype=torch.int64)
        self.most_cells = torch.zeros(num_classes, dtype=torch.int64)
        self.example = torch.full((num_classes,), -1)

    def update(self, scene: Scene) -> None:
        c, k = self.shape
        prediction = scene.cell_prediction
        for row, ids in enumerate((scene.cell_label, prediction)):
            nearest = ids * k + scene.cosines.own(ids).argmax(1)
            self.counts[row] += torch.bincount(nearest[ids != IGNORE_INDEX].cpu(), minlength=c * k)
        cells = torch.bincount(prediction[prediction == scene.cell_class].cpu(), minlength=c)
        self.example = self.example.where(cells <= self.most_cells, scene.number)
        self.most_cells = torch.maximum(cells, self.most_cells)

    def compute(self) -> Occupancy:
        true, predicted = self.counts.view(2, *self.shape).clone()
        return Occupancy(true, predicted, self.most_cells.clone(), self.example.clone())


def describe(prototypes: Tensor, counts: Tensor, label_space: LabelSpace) -> list[dict[str, Any]]:
    """What is to be known of each class's prototypes (unit vectors ``c k d``), one entry of plain values per class.

    ``counts`` are the cells that each one takes, ``c k``, see :class:`Occupancy`. An entry has ``name``; ``cells``;
    ``shares`` (k numbers, None without a cell); ``effective`` (exp of their entropy: how many prototypes do the work);
    ``mean_cosine`` within the class (None for K = 1); ``dead`` (numbers of prototypes with less than ``DEAD_BELOW``);
    ``duplicates`` (``[i, j, cosine]`` above ``DUPLICATE_ABOVE``); ``nearest_class``, ``nearest_cosine`` (closest pair).
    """
    prototypes = prototypes.cpu()
    within, means = prototypes @ prototypes.mT, within_class_cosine(prototypes)
    between, nearest = nearest_class_cosine(prototypes).fill_diagonal_(-torch.inf).max(1)
    alone = label_space.num_classes == 1
    entries = []
    for i, name in enumerate(label_space.classes):
        cells = int(counts[i].sum())
        share = counts[i].double() / max(cells, 1)
        pairs = torch.triu(within[i] > DUPLICATE_ABOVE, diagonal=1).nonzero().tolist()
        entry = {
            "name": name,
            "cells": cells,
            "shares": share.tolist() if cells else None,
            "effective": float(torch.special.entr(share).sum().exp()) if cells else None,
            "mean_cosine": None if means[i].isnan() else float(means[i]),
            "dead": (share < DEAD_BELOW).nonzero().flatten().tolist() if cells else [],
            "duplicates": [[a, b, float(within[i, a, b])] for a, b in pairs],
            "nearest_class": None if alone else label_space.classes[int(nearest[i])],
            "nearest_cosine": None if alone else float(between[i]),
        }
        entries.append(entry)
    return entries


def within_figure(prototypes: Tensor, label_space: LabelSpace, classes: Sequence[int] | None = None) -> Figure:
    """A ``k`` by ``k`` table of cosines for each class (or the given ids), at most 40, in one figure."""
    chosen = _chosen(label_space, classes)
    vectors = prototypes.cpu()[chosen]
    cosines = (vectors @ vectors.mT).numpy()
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = empty_figure(1.2 + 2.1 * columns, 0.9 + 2.3 * rows)
    k = cosines.shape[1]
    ticks = range(0, k, max(1, k // 5))
    for place, (i, table) in enumerate(zip(chosen, cosines, strict=True), 1):
        axes = figure.add_subplot(rows, columns, place)
        picture = axes.imshow(table, **_COSINES)
        mean = f" · {table[~np.eye(k, dtype=bool)].mean():.2f}" if k > 1 else ""
        axes.set_title(f"{figure_name(label_space.classes[i])}{mean}", fontsize=10)
        axes.set(xticks=ticks, yticks=ticks)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=figure.axes, fraction=0.025, pad=0.02).outline.set_visible(False)  # type: ignore[operator]
    figure.suptitle("Cosines between the prototypes of a class (title: mean of the pairs)", fontsize=12)
    return figure


def between_figure(prototypes: Tensor, label_space: LabelSpace) -> Figure:
    """A table of the cosines of the nearest prototypes of each two classes."""
    cosines = nearest_class_cosine(prototypes.cpu()).numpy()
    title = "Cosine of the nearest prototypes of two classes\n(diagonal: mean within the class)"
    figure, (axes,) = class_tables({title: cosines}, label_space.classes, 90, **_COSINES)
    for (row, column), value in np.ndenumerate(cosines) if len(cosines) <= MANY_CLASSES else ():
        color = "white" if abs(value) > 0.6 else "0.2"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    return figure


def occupancy_figure(found: Occupancy, label_space: LabelSpace, classes: Sequence[int] | None = None) -> Figure:
    """Each class as a bar of its prototypes' shares, largest first: above the true cells, below the predicted ones."""
    chosen = _chosen(label_space, classes)
    k = found.true.shape[1]
    edge: dict[str, Any] = {"edgecolor": "0.5", "linewidth": 0.4}
    figure = empty_figure(9, 1.2 + 0.5 * len(chosen))
    axes = figure.add_subplot()
    axes.axvline(0, color="0.4", linewidth=0.8)
    for place, i in enumerate(chosen):
        order = found.counted[i].argsort(descending=True)
        shades = np.linspace(1, 0.25, k)[:, None]
        colors = 1 - shades * (1 - np.array(label_space.colors[i]) / 255)
        for kind, counts in enumerate((found.true, found.predicted)):
            shares = 100 * found.share(counts)[i][order].nan_to_num(0.0)
            middles = (shares.cumsum(0) - shares / 2).tolist()
            y = place + (kind - 0.5) * 0.38
            axes.barh([y] * k, shares, 0.34, left=middles - shares.numpy() / 2, color=colors, **edge)
            for rank in (shares > 4).nonzero().flatten().tolist():
                color = "white" if sum(colors[rank]) < 1.5 else "0.2"
                axes.text(middles[rank], y, str(int(order[rank])), ha="center", va="center", fontsize=6, color=color)
    name_bars(axes, [label_space.classes[i] for i in chosen])
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Pixels of a class by nearest prototype (its number): upper bar true, lower predicted", fontsize=11)
    return figure


def _chosen(label_space: LabelSpace, classes: Sequence[int] | None) -> list[int]:
    return list(range(label_space.num_classes) if classes is None else classes)[:MANY_CLASSES]
