"""Pictures, figures and arrays as text inside a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from protoseg.evaluation.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def jpeg_uri(picture: Picture, width: int, quality: int = 80) -> str:
    """A picture, reduced to a width where it is wider, as a ``data:`` URI of a JPEG."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, optimize=True)
    return _uri("image/jpeg", buffer.getvalue())


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a ``data:`` URI of a PNG of at most 256 colours: a quarter of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    colors = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    colors.save(small, format="PNG", optimize=True)
    return _uri("image/png", small.getvalue())


def array_text(values: npt.NDArray[np.generic]) -> str:
    """The bytes of an array, little-endian, as base64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
