"""Predict georeferenced images by windows, into GeoTIFFs of the same place; memory is that of a window."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from protoseg.data.channels import ImageReader, check_numbers
from protoseg.data.decoding import FAILURES, geotiff, to_bytes
from protoseg.data.files import unreadable
from protoseg.data.label_spaces import file_ignored
from protoseg.evaluation.pictures import overlay
from protoseg.evaluation.predictor import Box
from protoseg.evaluation.writer import jpeg

if TYPE_CHECKING:
    from protoseg.evaluation.predict import Writer

SIDE = 4096  # pixels of an overlay's longer side at most: of a larger image every second pixel, every third, …
_RGB = ("red", "green", "blue")


@contextmanager
def opened(path: Path, reader: ImageReader) -> Iterator["GeoImage | None"]:
    """The image as it is read by windows; None where it is not georeferenced.

    Raises ProtosegError: other channels than the model's; a file that cannot be read.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        yield None
        return
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(geotiff(file)) for file in reader.files(path)]
        except FAILURES:  # no rasterio, or perhaps of a kind that Pillow knows; else that says why
            files = []
        placed = files and (files[0].crs is not None or not files[0].transform.is_identity)
        yield GeoImage(path, reader, files) if placed else None


class GeoImage:
    """An image in open files of rasterio's, one or one for each band."""

    def __init__(self, path: Path, reader: ImageReader, files: list[Any]) -> None:
        self.path, self.reader, self.files = path, reader, files
        self.size = self.height, self.width = files[0].shape
        colors = tuple(color.name for color in files[0].colorinterp)
        plain = colors in (_RGB, (*_RGB, "alpha")) and files[0].dtypes[0] in ("uint8", "uint16")  # else a palette, …
        self.whole = None if reader.channels or plain else reader.read(path, turn=False)

    def read(self, box: Box) -> NDArray[Any]:
        """A window, as ``ImageReader.read`` gives the whole; raises as that."""
        if self.whole is not None:
            return self.whole[box]
        chosen = None if self.reader.channels else [1, 2, 3]
        try:
            pixels = np.concatenate([file.read(chosen, window=box) for file in self.files]).transpose(1, 2, 0)
        except FAILURES as error:
            raise unreadable(self.path, "image", error) from error
        if self.reader.channels:
            check_numbers(pixels, self.reader.channels, self.path)
            return self.reader.scaled(pixels, f"image {self.path}")
        return pixels if pixels.dtype == np.uint8 else to_bytes(pixels, next(iter(self.reader.ranges), None))

    def predict(self, writer: "Writer", name: Path) -> None:
        """Write what is wanted: ``labels/NAME.tif``, in the image's place, and ``overlays/NAME.jpg``."""
        space, step = writer.label_space, -(-max(self.size) // SIDE)
        picture = np.zeros((-(-self.height // step), -(-self.width // step), 3), np.uint8)
        ignored = file_ignored(space.num_classes)
        kind = np.min_scalar_type(ignored)

        def run(target: Any = None) -> None:
            for piece in writer.predictor.pieces(*self.size):
                rows, columns = (slice(p.start, min(p.stop, n)) for p, n in zip(piece.seen, self.size, strict=True))
                image = torch.from_numpy(self.read((rows, columns)).copy()).permute(2, 0, 1)
                label = writer.predict(image)[piece.inner]
                if target:
                    target.write(label.numpy().astype(kind), 1, window=piece.place)
                thin: Any = tuple(slice(-part.start % step, None, step) for part in piece.place)
                shown = image[:, piece.inner[0], piece.inner[1]][:, thin[0], thin[1]]
                tile = overlay(shown, label[thin], space)
                y, x = (-(-part.start // step) for part in piece.place)
                picture[y : y + tile.shape[0], x : x + tile.shape[1]] = tile

        def save(partial: Path) -> None:
            import rasterio

            profile = {"driver": "GTiff", "count": 1, "dtype": kind, "compress": "deflate", "nodata": ignored}
            profile |= {"height": self.height, "width": self.width, "tiled": True, "bigtiff": "if_safer"}
            profile |= {"crs": self.files[0].crs, "transform": self.files[0].transform}
            with rasterio.open(partial, "w", **profile) as target:
                if kind == np.uint8:
                    target.write_colormap(1, dict(enumerate(space.colors)))
                run(target)

        if "labels" in writer.save:
            writer.put(writer.path("labels", name).with_suffix(".tif"), save)
        else:
            run()
        if "overlays" in writer.save:
            writer.put(writer.path("overlays", name), jpeg(picture))
