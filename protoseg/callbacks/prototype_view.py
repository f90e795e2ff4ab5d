"""What one image shows of the prototypes, quick enough for every validation: where they fire, where they lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.analysis.activations import activation, assignment_picture, heat_picture
from protoseg.analysis.embedding import EmbeddingCollector
from protoseg.analysis.stream import Scene, prototype_memory
from protoseg.evaluation.pictures import (
    MANY_CLASSES,
    Picture,
    as_picture,
    empty_figure,
    figure_name,
    figure_picture,
    fit_width,
    overlay,
    short_name,
    tile_row,
)
from protoseg.types import LabelSpace

_CLASSES, _PIXELS_PER_CLASS, _TILE = 5, 25, 280


def activation_rows(model: nn.Module, scene: Scene, space: LabelSpace) -> Picture:
    """The most frequent classes of an image: which prototype takes which pixel, and the cosine to the nearest one.

    The classes are those of the truth, so that they are the same at every validation.
    """
    image, counts = scene.image.cpu(), torch.bincount(_ids(scene), minlength=space.num_classes)
    prediction = overlay(image, scene.at_pixels(scene.output.logits[0]).argmax(0), space)
    tiles = {"photo, prediction": _column(as_picture(image), prediction)}
    for i in counts.argsort(descending=True)[:_CLASSES].tolist():
        if counts[i] == 0:
            break
        found = activation(model, scene, i)
        title = f"{short_name(space.classes[i])}: {int((found.shares > 0.01).sum())} prototypes"
        nearest = heat_picture(image, found.cosines.amax(0), 0.0, 1.0)
        tiles[title] = _column(assignment_picture(image, found), nearest)
    return tile_row(tiles, space, [scene.cell_label.cpu(), scene.cell_prediction.cpu()])


class Plane(NamedTuple):
    """Embeddings in two dimensions, prototypes first."""

    places: Tensor  # n 2: the first two principal components of the prototypes
    label: Tensor  # n: class; of a pixel the true one
    number: Tensor  # n: of the prototype; of a pixel that of the nearest of its class
    prototypes: int  # how many of the n are prototypes

    def rows(self, space: LabelSpace) -> list[list[str | int | float]]:
        """Kind, class, number of the prototype, x and y of each."""
        places = zip(self.label.tolist(), self.number.tolist(), self.places.tolist(), strict=True)
        kinds = ["prototype"] * self.prototypes + ["pixel"] * (len(self.label) - self.prototypes)
        return [
            [kind, space.classes[label], number, round(x, 4), round(y, 4)]
            for kind, (label, number, (x, y)) in zip(kinds, places, strict=True)
        ]


def embedding_plane(model: nn.Module, scene: Scene) -> Plane:
    """All prototypes and some pixels of an image on the plane in which the prototypes spread most.

    Of more than 40 classes, those of the image.
    """
    vectors = prototype_memory(model).prototypes.cpu().float()
    c, k, _ = vectors.shape
    chosen = torch.arange(c) if c <= MANY_CLASSES else _ids(scene).unique()
    collector = EmbeddingCollector(_PIXELS_PER_CLASS)
    collector.update(scene)
    sample = collector.compute()
    number = (vectors[sample.label] @ sample.embeddings.unsqueeze(2)).squeeze(2).argmax(1)
    prototypes = vectors[chosen].flatten(0, 1)
    centre = prototypes.mean(0)
    axes = torch.linalg.svd(prototypes - centre, full_matrices=False).Vh[:2]
    # The sign of an axis is arbitrary: fixed, so that the map does not turn over between validations.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    places = (torch.cat([prototypes, sample.embeddings]) - centre) @ axes.T
    return Plane(
        F.pad(places, (0, 2 - places.shape[1])),
        torch.cat([chosen.repeat_interleave(k), sample.label]),
        torch.cat([torch.arange(k).repeat(len(chosen)), number]),
        len(prototypes),
    )


def plane_picture(plane: Plane, space: LabelSpace) -> Picture:
    """Pixels as points, prototypes as circles, in the colours of their classes."""
    figure = empty_figure(8, 6)
    axes = figure.add_subplot()
    colors = np.array(space.colors)[plane.label.numpy()] / 255
    (x, y), p = plane.places.T.numpy(), plane.prototypes
    axes.scatter(x[p:], y[p:], s=7, c=colors[p:], linewidths=0)
    axes.scatter(x[:p], y[:p], s=60, c=colors[:p], edgecolors="black", linewidths=0.8)
    for i in plane.label[:p].unique().tolist():
        own = (plane.label[:p] == i).numpy()
        middle = x[:p][own].mean(), y[:p][own].mean()
        axes.annotate(figure_name(space.classes[i]), middle, fontsize=8, ha="center",
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.7})  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.set_title("prototypes (circles) and pixels of one image: principal components", fontsize=11)
    return figure_picture(figure)


def _ids(scene: Scene) -> Tensor:
    """True class of each labelled cell; the predicted one of all where the image is without labels."""
    known = scene.labelled
    return (scene.cell_label[known] if known.any() else scene.cell_prediction).cpu()


def _column(*pictures: Picture) -> Picture:
    return np.concatenate([fit_width(picture, (_TILE, _TILE)) for picture in pictures])
