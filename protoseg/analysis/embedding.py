"""Flat maps of the embedding space, pixels and prototypes: of many images by t-SNE, of one image in the dashboard."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from protoseg.analysis.stream import Scene, prototype_memory
from protoseg.evaluation.pictures import MANY_CLASSES, Picture, empty_figure, figure_name, figure_picture
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError, require


class EmbeddingSample(NamedTuple):
    """Embeddings of pixels, drawn at random, the same number of every class where there are so many."""

    embeddings: Tensor  # unit vectors ``n d``
    label: Tensor  # int64 ``n``: true class; where the images came without labels, the predicted one
    image: Tensor  # int64 ``n``: place of the image in the stream


class EmbeddingCollector:
    """Draws at most ``per_class`` cells of each class, with equal chance: those of the lowest random numbers."""

    def __init__(self, per_class: int, seed: int = 0) -> None:
        self.per_class = per_class
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: list[Tensor] = []  # of the cells drawn so far: random number, class, image, embedding

    def update(self, scene: Scene) -> None:
        ids = scene.cell_class.cpu()
        cells = (ids != IGNORE_INDEX).nonzero().flatten()
        number = torch.rand(len(cells), generator=self.generator)
        first = self._lowest(number, ids[cells])
        cells, number = cells[first], number[first]
        vectors = scene.output.embeddings[0].flatten(1).T[cells.to(scene.image.device)].float().cpu()
        new = [number, ids[cells], torch.full_like(cells, scene.number), F.normalize(vectors, dim=1)]
        both = [torch.cat(pair) for pair in zip(self.kept, new, strict=True)] if self.kept else new
        self.kept = [values[self._lowest(*both[:2])] for values in both]

    def _lowest(self, number: Tensor, ids: Tensor) -> Tensor:
        """Indices of the ``per_class`` lowest numbers of each class."""
        key, order = (ids.double() + number.double()).sort()
        place = torch.arange(len(key)) - torch.searchsorted(key, key.floor())  # within the class
        return order[place < self.per_class]

    def compute(self) -> EmbeddingSample:
        """The sample so far; raises ProtosegError if no image was seen."""
        if not self.kept:
            raise ProtosegError("embedding map: expected at least one image, got none; choose another split")
        _, label, image, embeddings = self.kept
        return EmbeddingSample(embeddings, label, image)


class Plane(NamedTuple):
    """Embeddings in two dimensions, prototypes first."""

    places: Tensor  # n 2
    label: Tensor  # int64 n: class; of a pixel as of :class:`EmbeddingSample`
    prototypes: int  # how many of the n are prototypes
    number: Tensor | None = None  # n: of the prototype; of a pixel that of the nearest of its class; None of t-SNE's

    def rows(self, space: LabelSpace) -> list[list[str | int | float]]:
        """Kind, class, number of the prototype, x and y of each."""
        assert self.number is not None
        columns = zip(self.label.tolist(), self.number.tolist(), self.places.tolist(), strict=True)
        return [
            ["prototype" if i < self.prototypes else "pixel", space.classes[label], number, round(x, 4), round(y, 4)]
            for i, (label, number, (x, y)) in enumerate(columns)
        ]


def embedding_map(sample: EmbeddingSample, prototypes: Tensor) -> Plane:
    """t-SNE (van der Maaten & Hinton, 2008) of pixels and prototypes ``c k d`` together, by scikit-learn.

    Of unit vectors, so that Euclidean neighbours, which it keeps together, are neighbours by cosine. A PCA is the
    start, so that the seed changes little. Raises ProtosegError: scikit-learn is not installed, or fewer than 4 points.
    """
    require("analysis", "sklearn")
    from sklearn.manifold import TSNE  # type: ignore[import-untyped]

    c, k, _ = prototypes.shape
    vectors = torch.cat([sample.embeddings, prototypes.detach().to(sample.embeddings).flatten(0, 1)])
    if len(vectors) < 4:
        raise ProtosegError(f"embedding map: expected at least 4 points, got {len(vectors)}; choose more images")
    tsne = TSNE(perplexity=min(30.0, (len(vectors) - 1) / 3), random_state=0)
    places = torch.from_numpy(tsne.fit_transform(vectors.numpy()).astype(np.float32)).roll(c * k, 0)
    return Plane(places, torch.cat([torch.arange(c).repeat_interleave(k), sample.label]), c * k)


def embedding_figure(
    found: Plane, space: LabelSpace, title: str = "t-SNE of the embeddings: dots are pixels, stars the prototypes"
) -> Figure:
    """Pixels as dots and prototypes as stars, in the colours of their classes, which are named beside the map."""
    places, label, p = found.places.numpy(), found.label.numpy(), found.prototypes
    figure = empty_figure(11, 8)
    axes = figure.add_subplot()
    colors = np.array(space.colors)[label] / 255
    axes.scatter(places[p:, 0], places[p:, 1], s=7, c=colors[p:], alpha=0.55, linewidths=0)
    axes.scatter(places[:p, 0], places[:p, 1], s=150, marker="*", c=colors[:p], edgecolors="black", linewidths=0.8)
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}
    for i in np.unique(label)[:MANY_CLASSES].tolist():
        x, y = np.median(places[label == i], axis=0)
        axes.text(x, y, figure_name(space.classes[i]), fontsize=9, ha="center", va="center", bbox=box, zorder=4)
    axes.set_axis_off()
    axes.set_title(title, fontsize=12)
    return figure


def embedding_plane(model: nn.Module, scene: Scene) -> Plane:
    """Prototypes (of more than 40 classes, the image's) and some pixels on the plane where prototypes spread most.

    That is of their first two principal components.
    """
    vectors = prototype_memory(model).prototypes.cpu().float()
    c, k, _ = vectors.shape
    collector = EmbeddingCollector(25)
    collector.update(scene)
    sample = collector.compute()
    chosen = torch.arange(c) if c <= MANY_CLASSES else sample.label.unique()
    number = (vectors[sample.label] @ sample.embeddings.unsqueeze(2)).squeeze(2).argmax(1)
    prototypes = vectors[chosen].flatten(0, 1)
    centre = prototypes.mean(0)
    axes = torch.linalg.svd(prototypes - centre, full_matrices=False).Vh[:2]
    # The sign of an axis is arbitrary: fixed, so that the map does not turn over between validations.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    places = (torch.cat([prototypes, sample.embeddings]) - centre) @ axes.T
    label = torch.cat([chosen.repeat_interleave(k), sample.label])
    number = torch.cat([torch.arange(k).repeat(len(chosen)), number])
    return Plane(F.pad(places, (0, 2 - places.shape[1])), label, len(prototypes), number)


def plane_picture(plane: Plane, space: LabelSpace) -> Picture:
    """As :func:`embedding_figure`, of one image."""
    title = "prototypes (stars) and pixels of one image: principal components"
    return figure_picture(embedding_figure(plane, space, title))
