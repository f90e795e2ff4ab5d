"""The images that a model does worst, with their pictures, kept while an evaluation runs."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from protoseg.evaluation.metrics import confusion_matrix, scores
from protoseg.evaluation.pictures import as_picture, error_map, overlay
from protoseg.page.encode import jpeg_uri
from protoseg.types import LabelSpace

_TILE_WIDTH = 480


class WorstImage(NamedTuple):
    """An image and its scores.

    Attributes:
        mIoU, accuracy: over the classes in its truth or its prediction, and share of right pixels, both in 0 to 1.
        name, tiles: path; photo, truth, prediction and errors as ``data:`` URIs, by title.
    """

    mIoU: float
    accuracy: float
    name: str
    tiles: dict[str, str]


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
        self.found.append(WorstImage(mean, float(judged["pixel_accuracy"]), name, tiles))
        self.found.sort(key=lambda image: image.mIoU)
        del self.found[self.n :]
