"""The page from its parts. Everything is inside the one file: styles, script, pictures as text, numbers."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from protoseg import __version__
from protoseg.analysis.activations import PatchCollector, activation, assignment_picture, heat_picture, prototype_colors
from protoseg.analysis.stream import Loader, Scene, collect, look, prototype_memory, scenes
from protoseg.analysis.structure import OccupancyCollector, between_figure, describe, occupancy_figure, within_figure
from protoseg.evaluation import pictures
from protoseg.evaluation.curves import curves_figure
from protoseg.evaluation.metrics import confusion_matrix, scores
from protoseg.files import without_nan, write_text
from protoseg.text import progress
from protoseg.types import IGNORE_INDEX, LabelSpace

MOST_CELLS = 20_000  # of an image to click into, 7 bytes each; of more every second cell is kept, or every third, …
_TILE_WIDTH, _PHOTO_WIDTH, _MAPPED_WIDTH, _MAP_WIDTH, _PATCH_WIDTH = 480, 640, 400, 240, 80
_PATCHES, _MOST_PATCHES = 5, 1000  # for each prototype; of all together, which bounds the page's size
_TEMPLATE = Path(__file__).parent / "template"


def jpeg_uri(picture: pictures.Picture, width: int, quality: int = 80) -> str:
    """A picture, reduced to a width where it is wider, as a ``data:`` URI of a JPEG."""
    image = Image.fromarray(picture)
    image.thumbnail((width, image.height), Image.Resampling.LANCZOS)
    return _uri(image, "jpeg", quality=quality)


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a ``data:`` URI of a PNG of at most 256 colours: a quarter of the bytes."""
    return _uri(Image.fromarray(pictures.figure_picture(figure)).quantize(256, dither=Image.Dither.NONE), "png")


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


class WorstImage(NamedTuple):
    """An image and its scores, in 0 to 1."""

    mIoU: float  # over the classes in its truth or its prediction that the data label
    accuracy: float  # share of right pixels
    name: str  # path
    tiles: dict[str, str]  # photo, truth, prediction and errors as ``data:`` URIs, by title


class WorstImages:
    """Keeps the ``n`` images of the lowest mIoU; those without a labelled pixel do not count, nor do ``unlabelled``."""

    def __init__(self, label_space: LabelSpace, n: int = 6, unlabelled: Sequence[int] = ()) -> None:
        self.label_space, self.n, self.unlabelled = label_space, n, unlabelled
        self.found: list[WorstImage] = []

    def update(self, name: str, image: Tensor, truth: Tensor, prediction: Tensor) -> None:
        """Look at one image: uint8 RGB ``3 h w`` and two maps of class ids, int64 ``h w``, all on the CPU."""
        space = self.label_space
        judged = scores(confusion_matrix(prediction, truth, space.num_classes), self.unlabelled, space.parents)
        mean = float(judged["mIoU"])
        if math.isnan(mean) or (len(self.found) == self.n and mean >= self.found[-1].mIoU):
            return
        shown = {
            "photo": pictures.as_picture(image, space.shown),
            "truth": pictures.overlay(image, truth, space),
            "prediction": pictures.overlay(image, prediction, space),
            "errors": pictures.error_map(image, truth, prediction, space),
        }
        tiles = {title: jpeg_uri(picture, _TILE_WIDTH) for title, picture in shown.items()}
        found = [*self.found, WorstImage(mean, float(judged["pixel_accuracy"]), name, tiles)]
        self.found = sorted(found, key=lambda image: image.mIoU)[: self.n]


@torch.no_grad()
def pixel_view(scene: Scene) -> dict[str, Any]:
    """What the page's script needs of one image, as plain values; raises ProtosegError for a model without prototypes.

    A cell belongs to the nearest prototype of the class that is predicted there, as in
    :class:`protoseg.analysis.activations.PatchCollector`; the runner-up is the nearest prototype of all other classes.

    ``name``, ``photo`` (URI), ``width`` and ``height`` of the image and ``cell`` in pixels, ``columns``; row by row as
    base64 of little-endian numbers ``prototype`` and ``second`` (uint16, class * k + number), ``truth`` (uint16, class
    or 65535), ``cosine`` and ``second_cosine`` (uint8, from ``low`` to ``high`` in 255 steps).
    """
    cosines, prediction = scene.cosines, scene.cell_prediction
    second_class = cosines.scores.scatter(1, prediction.unsqueeze(1), -torch.inf).argmax(1)
    (best, number), (second, second_number) = (cosines.own(ids).max(1) for ids in (prediction, second_class))
    low, high = float(min(best.min(), second.min())), float(max(best.max(), second.max()))
    k, step = cosines.num_prototypes, math.ceil(math.sqrt(math.prod(scene.grid) / MOST_CELLS))

    def text(values: Tensor, kind: str) -> str:
        thin = values.view(scene.grid)[::step, ::step].cpu().numpy()
        return base64.b64encode(thin.astype(kind).tobytes()).decode()

    def shades(values: Tensor) -> str:
        return text((255 * (values.float() - low) / max(high - low, 1e-6)).round(), "u1")

    return {
        "name": Path(scene.name).name,
        "photo": jpeg_uri(pictures.as_picture(scene.image), _PHOTO_WIDTH, quality=85),
        "height": scene.size[0],
        "width": scene.size[1],
        "cell": scene.stride * step,
        "columns": -(-scene.grid[1] // step),
        "prototype": text(prediction * k + number, "<u2"),
        "second": text(second_class * k + second_number, "<u2"),
        "truth": text(scene.cell_label.where(scene.labelled, 65535), "<u2"),
        "cosine": shades(best),
        "second_cosine": shades(second),
        "low": low,
        "high": high,
    }


class PrototypeReport(NamedTuple):
    """The parts of the page; pictures, but for those of patches, are ``data:`` URIs."""

    classes: list[dict[str, Any]]  # by class id, entries of :func:`protoseg.analysis.structure.describe`
    drawn: list[dict[str, Any]]  # of some classes ``id``, ``entry``, ``patches`` by prototype, maps over one image
    figures: dict[str, str]  # occupancy and cosines, by title
    colors: list[str]  # of the numbers of the prototypes, as CSS


def prototype_report(model: nn.Module, loader: Loader, space: LabelSpace) -> PrototypeReport:
    """Look at images with labels, e.g. training images, and collect what the page shows of the prototypes.

    Of more than 40 classes, those with most cells are drawn. Raises ProtosegError for a model without prototypes.
    """
    vectors = prototype_memory(model).prototypes
    c, k, _ = vectors.shape
    few = min(c, pictures.MANY_CLASSES)
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
    for i in progress(chosen, "activation maps"):
        drawn.append({"id": i, "entry": entries[i], "patches": nearest[i]})
        if occupancy.example[i] >= 0:
            image, label, name = cast(Any, loader.dataset[int(occupancy.example[i])])
            scene = look(model, image, label, name=name, shown=space.shown)
            image, found = scene.image, activation(model, scene, i)
            low, high = found.range
            drawn[-1] |= {
                "photo": jpeg_uri(pictures.as_picture(image), _MAPPED_WIDTH),
                "assignment": jpeg_uri(assignment_picture(image, found), _MAPPED_WIDTH),
                "name": name,
                "range": f"{low:.2f} to {high:.2f}",
                "maps": [jpeg_uri(heat_picture(image, cosines, low, high), _MAP_WIDTH) for cosines in found.cosines],
            }
    return PrototypeReport(entries, drawn, figures, [css(color) for color in prototype_colors(k)])


def css(color: Sequence[int]) -> str:
    """RGB, 0 to 255, for a style sheet."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    result: dict[str, Any],
    confusion: np.ndarray,
    label_space: LabelSpace,
    worst: Sequence[WorstImage],
    run: Path | None = None,
    prototypes: PrototypeReport | None = None,
    views: Sequence[dict[str, Any]] = (),
    doubt: Mapping[str, Any] | None = None,
) -> int:
    """Write the page and return its size in bytes; raises ProtosegError if the disk refuses.

    ``facts``, shown below the title, say what was judged, and how; ``result`` is what ``evaluate`` returns,
    ``confusion`` int64 ``c c``, rows are the truth. ``worst`` and ``views`` are images to show, worst first, and to
    click into, see :func:`pixel_view`; ``run`` is the folder of the training, for its curves; ``doubt`` is, of a model
    with statistics, a ``figure`` and what :meth:`protoseg.analysis.uncertainty.UncertaintyCollector.label_sets` gives.
    """
    # A template's undefined name is a fault of ours: an error, not an empty place.
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, undefined=StrictUndefined)
    environment.filters["uri"] = partial(jpeg_uri, width=_PATCH_WIDTH)
    colors, numbers = [css(color) for color in label_space.colors], prototypes.colors if prototypes else []
    data = {"classes": label_space.classes, "colors": colors, "numberColors": numbers, "views": views}
    matrix = {pictures.CONFUSION: torch.from_numpy(confusion)}
    text = environment.get_template("page.html").render(
        title=title,
        facts={**facts, "written": f"{datetime.now():%Y-%m-%d %H:%M} by protoseg {__version__}"},
        result=without_nan(result),
        ignored=IGNORE_INDEX,
        confusion=figure_uri(pictures.confusions_figure(matrix, label_space)),
        curves=None if run is None else figure_uri(curves_figure(run)),
        worst=worst,
        prototypes=prototypes,
        doubt=without_nan(doubt),
        data=without_nan(data),
    )
    write_text(path, text)
    return path.stat().st_size
