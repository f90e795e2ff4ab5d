"""Images of the page: pictures and figures as text, the images a model does worst, and those to click into."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from protoseg.analysis.stream import Scene
from protoseg.evaluation.metrics import confusion_matrix, scores
from protoseg.evaluation.pictures import Picture, as_picture, error_map, figure_picture, overlay
from protoseg.types import LabelSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CELLS = 20_000  # of an image to click into, 7 bytes each; of more every second cell is kept, or every third, …
_TILE_WIDTH, _PHOTO_WIDTH = 480, 640


def jpeg_uri(picture: Picture, width: int, quality: int = 80) -> str:
    """A picture, reduced to a width where it is wider, as a ``data:`` URI of a JPEG."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    return _uri(image, "jpeg", quality=quality)


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a ``data:`` URI of a PNG of at most 256 colours: a quarter of the bytes."""
    return _uri(Image.fromarray(figure_picture(figure)).quantize(256, dither=Image.Dither.NONE), "png")


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


class WorstImage(NamedTuple):
    """An image and its scores, in 0 to 1."""

    mIoU: float  # over the classes in its truth or its prediction
    accuracy: float  # share of right pixels
    name: str  # path
    tiles: dict[str, str]  # photo, truth, prediction and errors as ``data:`` URIs, by title


class WorstImages:
    """Keeps the ``n`` images of the lowest mIoU; those without a labelled pixel do not count."""

    def __init__(self, label_space: LabelSpace, n: int = 6) -> None:
        self.label_space, self.n = label_space, n
        self.found: list[WorstImage] = []

    def update(self, name: str, image: Tensor, truth: Tensor, prediction: Tensor) -> None:
        """Look at one image: uint8 RGB ``3 h w`` and two maps of class ids, int64 ``h w``, all on the CPU."""
        space = self.label_space
        judged = scores(confusion_matrix(prediction, truth, space.num_classes))
        mean = float(judged["mIoU"])
        if math.isnan(mean) or (len(self.found) == self.n and mean >= self.found[-1].mIoU):
            return
        pictures = {
            "photo": as_picture(image),
            "truth": overlay(image, truth, space),
            "prediction": overlay(image, prediction, space),
            "errors": error_map(image, truth, prediction, space),
        }
        tiles = {title: jpeg_uri(picture, _TILE_WIDTH) for title, picture in pictures.items()}
        found = [*self.found, WorstImage(mean, float(judged["pixel_accuracy"]), name, tiles)]
        self.found = sorted(found, key=lambda image: image.mIoU)[: self.n]


@torch.no_grad()
def pixel_view(scene: Scene) -> dict[str, Any]:
    """What the page's script needs of one image, as plain values; raises ProtosegError for a model without prototypes.

    A cell belongs to the nearest prototype of the class that is predicted there, as in
    :class:`protoseg.analysis.patches.PatchCollector`; the runner-up is the nearest prototype of all other classes.

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
        "photo": jpeg_uri(as_picture(scene.image), _PHOTO_WIDTH, quality=85),
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
