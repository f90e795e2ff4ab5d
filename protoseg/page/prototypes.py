"""What the page shows of each class's prototypes: numbers, nearest patches, and where they fire in one image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from torch import nn

from protoseg.analysis.activations import activation, assignment_picture, heat_picture, prototype_colors
from protoseg.analysis.patches import Patch, PatchCollector
from protoseg.analysis.stream import Loader, collect, look, prototype_memory, scenes
from protoseg.analysis.structure import OccupancyCollector, between_figure, describe, occupancy_figure, within_figure
from protoseg.evaluation.pictures import MANY_CLASSES, as_picture
from protoseg.page.images import figure_uri, jpeg_uri
from protoseg.types import IGNORE_INDEX, LabelSpace

_PATCHES, _MOST_PATCHES = 5, 1000  # for each prototype; of all together, which bounds the page's size
_MAP_WIDTH, _PHOTO_WIDTH, _PATCH_WIDTH = 240, 400, 80


class PrototypeReport(NamedTuple):
    """The parts of the page, as plain values and ``data:`` URIs."""

    classes: list[dict[str, Any]]  # by class id, entries of :func:`protoseg.analysis.structure.describe`
    drawn: list[dict[str, Any]]  # of some classes ``id``, ``entry``, ``photo``, ``assignment`` and ``prototypes``
    figures: dict[str, str]  # occupancy and cosines, by title
    colors: list[str]  # of the numbers of the prototypes, as CSS


def prototype_report(model: nn.Module, loader: Loader, space: LabelSpace) -> PrototypeReport:
    """Look at images with labels, e.g. training images, and collect what the page shows of the prototypes.

    Of more than 40 classes, those with most cells are drawn. Raises ProtosegError for a model without prototypes.
    """
    vectors = prototype_memory(model).prototypes
    c, k, _ = vectors.shape
    few = min(c, MANY_CLASSES)
    counter, patches = OccupancyCollector(c, k), PatchCollector(c, k, max(1, min(_PATCHES, _MOST_PATCHES // (few * k))))
    collect(scenes(model, loader, "prototypes"), counter, patches)
    occupancy, nearest = counter.compute(), patches.compute()
    entries = describe(vectors, occupancy.counted, space)
    chosen = sorted(occupancy.counted.sum(1).argsort(descending=True)[:few].tolist())
    figures = {
        "Which prototype takes how many pixels": figure_uri(occupancy_figure(occupancy, space, chosen)),
        "How alike the prototypes of a class are": figure_uri(within_figure(vectors, space, chosen)),
        "How near the classes are to one another": figure_uri(between_figure(vectors, space)),
    }
    drawn = []
    for i in track(chosen, "activation maps", console=Console(stderr=True)):
        drawn.append({"id": i, "entry": entries[i], "prototypes": _prototypes(entries[i], nearest[i], i, space)})
        if occupancy.example[i] >= 0:
            drawn[-1] |= _maps(model, loader.dataset[int(occupancy.example[i])], i, drawn[-1]["prototypes"])
    return PrototypeReport(entries, drawn, figures, [css(color) for color in prototype_colors(k)])


def _prototypes(
    entry: dict[str, Any], patches: Sequence[Sequence[Patch]], class_id: int, space: LabelSpace
) -> list[dict[str, Any]]:
    """Of each prototype of a class its share, its twins and its patches."""
    return [
        {
            "number": j,
            "share": entry["shares"] and entry["shares"][j],
            "dead": j in entry["dead"],
            "twins": [b if a == j else a for a, b, _ in entry["duplicates"] if j in (a, b)],
            "patches": [
                {
                    "picture": jpeg_uri(patch.picture, _PATCH_WIDTH),
                    "cosine": patch.cosine,
                    "file": Path(patch.name).name,
                    "wrong": None if patch.label in (class_id, IGNORE_INDEX) else space.classes[patch.label],
                }
                for patch in own
            ],
        }
        for j, own in enumerate(patches)
    ]


def _maps(model: nn.Module, sample: Any, class_id: int, prototypes: list[dict[str, Any]]) -> dict[str, str]:
    """Photo and assignment of one image; the map of each prototype is put beside its patches."""
    image, label, name = sample
    found = activation(model, look(model, image, label, name=name), class_id)
    low, high = found.range
    for prototype, cosines in zip(prototypes, found.cosines, strict=True):
        prototype["map"] = jpeg_uri(heat_picture(image, cosines, low, high), _MAP_WIDTH)
    return {
        "photo": jpeg_uri(as_picture(image), _PHOTO_WIDTH),
        "assignment": jpeg_uri(assignment_picture(image, found), _PHOTO_WIDTH),
        "file": Path(name).name,
        "range": f"{low:.2f} to {high:.2f}",
    }


def css(color: Sequence[int]) -> str:
    """RGB, 0 to 255, for a style sheet."""
    return "#{:02x}{:02x}{:02x}".format(*color)
