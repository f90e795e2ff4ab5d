"""A flat map of the embedding space: sampled pixels, and the prototypes among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.analysis.stream import Loader, Scene, collect, scenes
from protoseg.evaluation.pictures import MANY_CLASSES, empty_figure, figure_name
from protoseg.types import LabelSpace, ProtosegError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 3000


class EmbeddingSample(NamedTuple):
    """Embeddings of pixels, drawn at random, the same number of every class where there are so many.

    Unit vectors ``n d``; their true class (where the images came without labels, the predicted one) and the place of
    their image in the stream, int64 ``n``.
    """

    embeddings: Tensor
    label: Tensor
    image: Tensor


class EmbeddingCollector:
    """Draws at most ``per_class`` cells of each class, with equal chance over the whole stream.

    Every cell gets a random number; of each class those with the lowest are kept.
    """

    def __init__(self, per_class: int, seed: int = 0) -> None:
        self.per_class = per_class
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: list[Tensor] = []  # of the cells drawn so far: random number, class, image, embedding

    def update(self, scene: Scene) -> None:
        known = scene.labelled if scene.labelled.any() else torch.ones_like(scene.labelled)
        cells = known.nonzero().flatten().cpu()
        ids = (scene.cell_label if scene.labelled.any() else scene.cell_prediction).cpu()[cells]
        number = torch.rand(len(cells), generator=self.generator)
        first = self._lowest(ids, number)
        vectors = scene.output.embeddings[0].flatten(1).T[cells[first].to(scene.image.device)].float().cpu()
        new = [number[first], ids[first], torch.full((len(first),), scene.number), F.normalize(vectors, dim=1)]
        both = [torch.cat(pair) for pair in zip(self.kept, new, strict=True)] if self.kept else new
        first = self._lowest(both[1], both[0])
        self.kept = [values[first] for values in both]

    def _lowest(self, ids: Tensor, number: Tensor) -> Tensor:
        """Indices of the ``per_class`` lowest numbers of each class."""
        key, order = (ids.double() + number.double()).sort()
        place = torch.arange(len(key)) - torch.searchsorted(key, key.floor())
        return order[place < self.per_class]

    def compute(self) -> EmbeddingSample:
        """The sample so far; raises ProtosegError if no image was seen."""
        if not self.kept:
            raise ProtosegError("embedding map: expected at least one image, got none; choose another split")
        _, label, image, embeddings = self.kept
        return EmbeddingSample(embeddings, label, image)


def sample_embeddings(model: nn.Module, loader: Loader, num_classes: int, pixels: int = PIXELS) -> EmbeddingSample:
    """About ``pixels`` embeddings over a stream, balanced over the classes; any head."""
    collector = EmbeddingCollector(max(1, pixels // num_classes))
    collect(scenes(model, loader, "embeddings"), collector)
    return collector.compute()


class EmbeddingMap(NamedTuple):
    """Places on a plane that keeps neighbours together: pixels ``n 2``, with their class, and prototypes ``c k 2``."""

    points: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    stars: npt.NDArray[np.float32] | None


def embedding_map(sample: EmbeddingSample, prototypes: Tensor | None = None, seed: int = 0) -> EmbeddingMap:
    """t-SNE (van der Maaten & Hinton, 2008) of pixels and prototypes together, by scikit-learn.

    Of unit vectors, so that Euclidean neighbours are neighbours by cosine. Prototypes are ``c k d``. A PCA is
    the start, so that the seed changes little.

    Raises:
        ProtosegError: scikit-learn is not installed, or fewer than 4 points.
    """
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-untyped]
    except ImportError as error:
        raise ProtosegError(
            "embedding map: expected scikit-learn, which is not installed: pip install -e '.[analysis]'"
        ) from error
    vectors = sample.embeddings
    if prototypes is not None:
        vectors = torch.cat([vectors, prototypes.detach().cpu().flatten(0, 1).to(vectors.dtype)])
    if len(vectors) < 4:
        raise ProtosegError(f"embedding map: expected at least 4 points, got {len(vectors)}; choose more images")
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    places = TSNE(perplexity=perplexity, random_state=seed).fit_transform(vectors.numpy()).astype(np.float32)
    n = len(sample.embeddings)
    stars = None if prototypes is None else places[n:].reshape(*prototypes.shape[:2], 2)
    return EmbeddingMap(places[:n], sample.label.numpy(), stars)


def embedding_figure(found: EmbeddingMap, label_space: LabelSpace) -> Figure:
    """Pixels as dots and prototypes as stars, in the colours of their classes, which are named beside the map."""
    figure = empty_figure(11, 8)
    axes = figure.add_subplot()
    colors = np.array(label_space.colors) / 255
    x, y = found.points.T
    axes.scatter(x, y, s=7, c=colors[found.label], alpha=0.55, linewidths=0)
    for color, stars in zip(colors, () if found.stars is None else found.stars, strict=False):
        x, y = stars.T
        axes.scatter(x, y, s=150, marker="*", color=color, edgecolors="black", linewidths=0.8, zorder=3)
    present = np.unique(found.label).tolist()
    for i in present[:MANY_CLASSES]:
        x, y = np.median(found.points[found.label == i], axis=0)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}
        axes.text(x, y, figure_name(label_space.classes[i]), fontsize=9, ha="center", va="center", bbox=box, zorder=4)
    axes.set_axis_off()
    stars_text = ", stars the prototypes" if found.stars is not None else ""
    axes.set_title(f"t-SNE of the embeddings: dots are pixels{stars_text}", fontsize=12)
    return figure
