"""Images to click into: for each cell of the grid the prototype that takes it, and the best one of another class."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import torch

from protoseg.analysis.stream import Scene
from protoseg.evaluation.pictures import as_picture
from protoseg.page.encode import jpeg_uri

PHOTO_WIDTH = 640
MOST_CELLS = 20_000  # 7 bytes each; of a larger grid every second cell is kept, or every third, …
_NONE = 65535


@torch.no_grad()
def pixel_view(scene: Scene) -> dict[str, Any]:
    """What the page's script needs of one image, as plain values.

    A cell belongs to the nearest prototype of the class that is predicted there, as in
    :class:`protoseg.analysis.patches.PatchCollector`; the runner-up is the nearest prototype of all other classes.

    Returns:
        ``name``, ``photo`` (URI), ``width`` and ``height`` of the image and ``cell`` in pixels, ``columns``; row by row
        as base64 of little-endian numbers ``prototype`` and ``second`` (uint16, class * k + number), ``truth`` (uint16,
        class or 65535), ``cosine`` and ``second_cosine`` (uint8, from ``low`` to ``high`` in 255 steps).

    Raises:
        ProtosegError: a model without prototypes.
    """
    cosines, prediction = scene.cosines, scene.cell_prediction
    k = cosines.num_prototypes
    best, number = cosines.own(prediction).max(1)
    others = cosines.scores.scatter(1, prediction.unsqueeze(1), -torch.inf)
    second_class = others.argmax(1)
    second_best, second_number = cosines.own(second_class).max(1)
    truth = scene.cell_label.where(scene.labelled, _NONE)
    low, high = float(min(best.min(), second_best.min())), float(max(best.max(), second_best.max()))

    step = math.ceil(math.sqrt(math.prod(scene.grid) / MOST_CELLS))

    def text(values: torch.Tensor, kind: str) -> str:
        thin = values.view(scene.grid)[::step, ::step].cpu().numpy()
        return base64.b64encode(thin.astype(kind).tobytes()).decode()

    def shades(values: torch.Tensor) -> str:
        return text((255 * (values.float() - low) / max(high - low, 1e-6)).round(), "u1")

    return {
        "name": Path(scene.name).name,
        "photo": jpeg_uri(as_picture(scene.image), PHOTO_WIDTH, quality=85),
        "height": scene.size[0],
        "width": scene.size[1],
        "cell": scene.stride * step,
        "columns": -(-scene.grid[1] // step),
        "prototype": text(prediction * k + number, "<u2"),
        "second": text(second_class * k + second_number, "<u2"),
        "truth": text(truth, "<u2"),
        "cosine": shades(best),
        "second_cosine": shades(second_best),
        "low": low,
        "high": high,
    }
