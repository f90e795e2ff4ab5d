"""What the page shows of each class's prototypes: numbers, nearest patches, and where they fire in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import nn

from protoseg.analysis.activations import activation, assignment_picture, heat_picture, prototype_colors
from protoseg.analysis.patches import PatchCollector, Patches
from protoseg.analysis.stream import Loader, collect, look, prototype_memory, scenes
from protoseg.analysis.structure import (
    Occupancy,
    OccupancyCollector,
    between_figure,
    describe,
    occupancy_figure,
    within_figure,
)
from protoseg.evaluation.pictures import MANY_CLASSES, as_picture
from protoseg.page.encode import figure_uri, jpeg_uri
from protoseg.types import IGNORE_INDEX, LabelSpace

_PATCHES, _MOST_PATCHES = 5, 1000  # for each prototype; of all together, which bounds the page's size
_MAP_WIDTH, _PHOTO_WIDTH, _PATCH_WIDTH = 240, 400, 80


@dataclass(frozen=True)
class PrototypeReport:
    """The parts of the page, as plain values and ``data:`` URIs.

    Attributes:
        classes: by class id, entries of :func:`protoseg.analysis.structure.describe`.
        drawn: of the classes that are drawn, ``id``, the ``entry``, ``photo``, ``assignment`` and their ``prototypes``.
        figures: occupancy and cosines, by title.
        colors: of the numbers of the prototypes, as CSS.
    """

    classes: list[dict[str, Any]]
    drawn: list[dict[str, Any]]
    figures: dict[str, str]
    colors: list[str]


def prototype_report(model: nn.Module, loader: Loader, space: LabelSpace) -> PrototypeReport:
    """Look at images with labels, e.g. training images, and collect what the page shows of the prototypes.

    Of more than 40 classes, those with most cells are drawn.

    Raises:
        ProtosegError: a model without prototypes.
    """
    vectors = prototype_memory(model).prototypes
    c, k, _ = vectors.shape
    few = min(c, MANY_CLASSES)
    counter, patches = OccupancyCollector(c, k), PatchCollector(c, k, max(1, min(_PATCHES, _MOST_PATCHES // (few * k))))
    collect(scenes(model, loader, "prototypes"), counter, patches)
    occupancy, found = counter.compute(), patches.compute()
    entries = describe(vectors, occupancy.counted, space)
    chosen = sorted(occupancy.counted.sum(1).argsort(descending=True)[:few].tolist())
    figures = {
        "Which prototype takes how many pixels": occupancy_figure(occupancy, space, chosen),
        "How alike the prototypes of a class are": within_figure(vectors, space, chosen),
        "How near the classes are to one another": between_figure(vectors, space),
    }
    colors = [_css(color) for color in prototype_colors(k)]
    drawn = _drawn(model, loader.dataset, occupancy, found, entries, space, chosen)
    return PrototypeReport(entries, drawn, {title: figure_uri(figure) for title, figure in figures.items()}, colors)


def _drawn(
    model: nn.Module,
    dataset: Any,
    occupancy: Occupancy,
    patches: Patches,
    entries: list[dict[str, Any]],
    space: LabelSpace,
    chosen: Sequence[int],
) -> list[dict[str, Any]]:
    drawn = []
    for i in track(chosen, "activation maps", console=Console(stderr=True)):
        shares, doubles = entries[i]["shares"], entries[i]["duplicates"]
        prototypes = [
            {
                "number": j,
                "share": None if shares is None else shares[j],
                "dead": j in entries[i]["dead"],
                "twins": [b if a == j else a for a, b, _ in doubles if j in (a, b)],
                "patches": [
                    {
                        "picture": jpeg_uri(patch.picture, _PATCH_WIDTH),
                        "cosine": patch.cosine,
                        "file": Path(patch.name).name,
                        "wrong": space.classes[patch.label] if patch.label not in (i, IGNORE_INDEX) else None,
                    }
                    for patch in of_prototype
                ],
            }
            for j, of_prototype in enumerate(patches.found[i])
        ]
        entry: dict[str, Any] = {"id": i, "entry": entries[i], "prototypes": prototypes}
        if occupancy.example[i] >= 0:
            entry |= _maps(model, dataset, int(occupancy.example[i]), i, prototypes)
        drawn.append(entry)
    return drawn


def _maps(
    model: nn.Module, dataset: Any, number: int, class_id: int, prototypes: list[dict[str, Any]]
) -> dict[str, str]:
    """Photo and assignment of one image; the map of each prototype is put beside its patches."""
    image, label, name = dataset[number]
    scene = look(model, image, label, name=name)
    found = activation(model, scene, class_id)
    low, high = float(found.cosines.median()), float(found.cosines.max())
    for prototype, cosines in zip(prototypes, found.cosines, strict=True):
        prototype["map"] = jpeg_uri(heat_picture(image, cosines, low, high), _MAP_WIDTH)
    return {
        "photo": jpeg_uri(as_picture(image), _PHOTO_WIDTH),
        "assignment": jpeg_uri(assignment_picture(image, found), _PHOTO_WIDTH),
        "file": Path(name).name,
        "range": f"{low:.2f} to {high:.2f}",
    }


def _css(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
