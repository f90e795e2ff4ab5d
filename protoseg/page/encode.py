"""Pictures and figures as text inside a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from protoseg.evaluation.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def jpeg_uri(picture: Picture, width: int, quality: int = 80) -> str:
    """A picture, reduced to a width where it is wider, as a ``data:`` URI of a JPEG."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    return _uri(image, "jpeg", quality=quality)


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a ``data:`` URI of a PNG of at most 256 colours: a quarter of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _uri(Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE), "png")


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
