"""A folder of images, what a frozen network makes of each, and shapes that are drawn on them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoseg.data.decoding import file_size, orientation
from protoseg.data.files import reading
from protoseg.data.own import ImageFolder
from protoseg.data.pairing import by_stem
from protoseg.functional.resize import grid_size
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError, SegOutput

FAR = 10_000  # pixels: no line is so thick, and none begins so far outside
Label = NDArray[np.uint8]
Points = Sequence[Sequence[float]]


class Photos:
    """Images under a folder, or one, by their places in a list; of damaged ones ``errors`` has a sentence.

    What the network makes of them is computed once, and lies in the folder ``maps``. Raises ProtosegError: no image,
    two of one name.
    """

    def __init__(self, file: TrainedFile, images: str | Path, maps: Path, device: Any) -> None:
        self.maps, self.device, self.dataset = maps, device, ImageFolder(images, file.label_space, reader=file.reader)
        self.paths = [path for path, _ in self.dataset.samples]
        self.root = Path(images) if Path(images).is_dir() else Path(images).parent
        by_stem(self.root, self.paths)  # labels go by the images' names
        self.names = [path.relative_to(self.root).as_posix() for path in self.paths]
        self.errors, self.model = dict[int, str](), file.model().to(device)
        self.sizes = [self._size(i) for i in range(len(self.paths))]

    def _size(self, i: int) -> tuple[int, int]:
        """Height and width, as EXIF turns it; ``1 1`` of a damaged one."""
        width = height = 1
        try:
            with reading(self.paths[i], "image"):
                width, height = file_size(self.paths[i])
        except ProtosegError as error:
            self.errors[i] = str(error)
        return (width, height) if orientation(self.paths[i]) >= 5 else (height, width)

    def grid(self, i: int) -> tuple[int, int]:
        """Rows and columns of the network's cells on an image."""
        return grid_size(self.sizes[i], self.model.stride)

    def image(self, i: int) -> Tensor:
        """A photo, ``c H W``, turned as EXIF says; raises ProtosegError: it is damaged."""
        try:
            return self.dataset[i].image
        except ProtosegError as error:
            self.errors[i] = str(error)
            raise

    @torch.no_grad()
    def seen(self, photo: Tensor) -> SegOutput:
        """What the network makes of a photo by its own classes, with maps in fp16."""
        found = self.model.segment(photo[None].to(self.device))
        maps = [each.half().cpu() for each in (found.embeddings, *(found.features or ()))]
        return SegOutput(found.logits.float().cpu(), maps[0], features=maps[1:], align_corners=found.align_corners)

    def output(self, i: int) -> SegOutput:
        """The same of an image, made once; its file is in memory where there is room, as the system sees to."""
        file = self.maps / f"{i}.pt"
        with suppress(OSError, RuntimeError):
            return SegOutput(**torch.load(file, weights_only=True, mmap=True))
        found, part = self.seen(self.image(i)), file.with_suffix(f".{threading.get_ident()}")
        with suppress(OSError, RuntimeError):  # a full disk: it is made again
            self.maps.mkdir(parents=True, exist_ok=True)
            torch.save(found._asdict(), part)
            part.replace(file)
        return found


def painted(size: tuple[int, int], points: Points, radius: float | None) -> Label:
    """Pixels within ``radius`` of a line, or inside a polygon, ``H W`` of 0 and 1; raises ProtosegError: no shape."""
    corners, mask = np.asarray(points, np.float64).reshape(-1, 2), np.zeros(size, np.uint8)
    fits = bool((np.abs(corners) < FAR).all()) and 0 <= (radius or 0) < FAR
    if not fits or len(corners) < (3 if radius is None else 1):
        raise ProtosegError(f"expected a line, or a polygon of three corners or more, got {len(corners)} points")
    at = corners.round().astype(np.int32)
    if radius is None:
        cv2.fillPoly(mask, [at], 1)
    else:
        cv2.polylines(mask, [np.concatenate([at, at[-1:]])], False, 1, 2 * int(radius) + 1)
    return mask
