"""The page from its parts. Everything is inside the one file: styles, script, pictures, numbers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from protoseg import __version__
from protoseg.evaluation.curves import curves_figure
from protoseg.evaluation.pictures import confusion_figure
from protoseg.evaluation.tables import without_nan
from protoseg.files import write_file
from protoseg.page.images import WorstImage, figure_uri
from protoseg.page.prototypes import PrototypeReport, css
from protoseg.types import LabelSpace

_TEMPLATE = Path(__file__).parent / "template"
_NAMES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "fw_IoU": "frequency-weighted IoU",
}


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
) -> int:
    """Write the page and return its size in bytes; raises ProtosegError if the disk refuses.

    Args:
        facts: what was judged, how: shown below the title.
        result, confusion: what ``evaluate`` returns; int64 ``c c``, rows are the truth.
        worst, views: images to show, worst first, and to click into, see :func:`protoseg.page.images.pixel_view`.
        run: folder of the training, for its curves.
        prototypes: None for a model without any.
    """
    # A template's undefined name is a fault of ours: an error, not an empty place.
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": _percent, "number": _number}
    colors = [css(color) for color in label_space.colors]
    numbers = prototypes.colors if prototypes else []
    data = {"classes": label_space.classes, "colors": colors, "numberColors": numbers, "views": views}
    pixels = max(sum(entry["true_pixels"] for entry in result["classes"]), 1)
    text = environment.get_template("page.html").render(
        title=title,
        facts={**facts, "written": f"{datetime.now():%Y-%m-%d %H:%M} by protoseg {__version__}"},
        style=(_TEMPLATE / "page.css").read_text(encoding="utf-8"),
        script=(_TEMPLATE / "page.js").read_text(encoding="utf-8"),
        measures={_NAMES.get(key, key): result[key] for key in result if key.startswith("mIoU") or key in _NAMES},
        rows=[entry | {"share": entry["true_pixels"] / pixels} for entry in without_nan(result)["classes"]],
        colors=colors,
        confusion=figure_uri(confusion_figure(torch.from_numpy(confusion), label_space)),
        curves=None if run is None else figure_uri(curves_figure(run)),
        worst=worst,
        prototypes=prototypes,
        data=without_nan(data),
    )
    content = text.encode(errors="backslashreplace")
    write_file(path, lambda partial: partial.write_bytes(content))
    return len(content)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or value != value else f"{100 * value:.{digits}f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
