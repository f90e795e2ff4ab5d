"""Training augmentation on albumentations: scale, crop, flip, colour. Evaluation changes nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# Without this, importing albumentations asks the network for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from protoseg.types import IGNORE_INDEX, ProtosegError

PAD_IMAGE = 127
MAX_CROPS = 10  # as mmsegmentation's RandomCrop(cat_max_ratio)
# The strengths of mmsegmentation's PhotoMetricDistortion, each applied with probability 1/2. Brightness is a factor
# here, not an offset of up to 32 of 255; hue is a share of the circle (18 of OpenCV's 180).
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 180


class Wanted(NamedTuple):
    """A class of which a crop is to hold more than ``pixels`` pixels."""

    train_id: int
    pixels: float


class SelectiveCrop(A.RandomCrop):  # type: ignore[misc]
    """``RandomCrop`` that draws again, up to ``MAX_CROPS`` times in all, while one class has more than
    ``max_class_share`` of the labelled pixels of the crop; and all that up to ``MAX_CROPS`` times while the crop does
    not hold what is ``wanted``. The last draw stands."""

    # Set after construction: albumentations 2 checks the arguments of __init__ against a schema of their own.
    max_class_share: float | None = None
    wanted: Wanted | None = None

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        for _ in range(MAX_CROPS):
            drawn = self._draw_balanced(params, data)
            if self.wanted is None:
                break
            crop = self.apply_to_mask(data["mask"], **drawn)
            if np.count_nonzero(crop == self.wanted.train_id) > self.wanted.pixels:
                break
        return drawn

    def _draw_balanced(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        for _ in range(MAX_CROPS):
            drawn: dict[str, Any] = super().get_params_dependent_on_data(params, data)
            if self.max_class_share is None:
                break
            if largest_class_share(self.apply_to_mask(data["mask"], **drawn)) <= self.max_class_share:
                break
        return drawn


def largest_class_share(label: NDArray[np.uint8]) -> float:
    """Share of the most frequent class among the labelled pixels of ``label`` (``h w``); 1 if none is labelled."""
    counts = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [256], [0, 256])[:IGNORE_INDEX]
    total = counts.sum()
    return float(counts.max() / total) if total > 0 else 1.0


class TrainTransform:
    """Random scale, crop (padded if the image is smaller), horizontal flip and photometric distortion.

    Args:
        crop_size: height and width of the result.
        scale: range of the factor by which the image is scaled before cropping.
        photometric: distort brightness, contrast, saturation and hue.
        max_class_share: draw the crop again (``SelectiveCrop``) while one class has more than this share; None: never.

    Raises:
        ProtosegError: a size or range that makes no sense.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        photometric: bool = True,
        max_class_share: float | None = None,
    ) -> None:
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ProtosegError(f"crop_size: expected [height, width] in pixels, got {list(crop_size)}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ProtosegError(f"scale: expected [low, high] with 0 < low <= high, got {list(scale)}")
        if max_class_share is not None and not 0 < max_class_share <= 1:
            raise ProtosegError(f"max_class_share: expected a share in (0, 1] or null, got {max_class_share}")
        steps: list[Any] = []
        if tuple(scale) != (1, 1):
            steps.append(A.RandomScale((scale[0] - 1, scale[1] - 1), cv2.INTER_LINEAR, p=1))
        self._crop = SelectiveCrop(
            int(crop_size[0]),
            int(crop_size[1]),
            pad_if_needed=True,
            pad_position="random",
            fill=PAD_IMAGE,
            fill_mask=IGNORE_INDEX,
        )
        self._crop.max_class_share = max_class_share
        steps += [self._crop, A.HorizontalFlip(p=0.5)]
        if photometric:  # last: the crop is usually smaller than the scaled image
            steps += [_jitter(brightness=BRIGHTNESS), _jitter(contrast=CONTRAST)]
            steps += [_jitter(saturation=SATURATION), _jitter(hue=HUE)]
        self._compose = A.Compose(steps)

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int, wanted: Wanted | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment ``image`` (``h w 3``) and ``label`` (``h w``); the result depends on these arguments alone.

        With ``wanted``, the crop (not the scale) is drawn again until it holds that, see ``SelectiveCrop``.
        """
        # One generator for all steps. Compose.set_random_seed gives every step the same seed, so that their draws agree
        # (a flip would go with a dark image), and takes seven times as long.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        self._crop.wanted = wanted
        out = self._compose(image=image, mask=label)
        return out["image"], out["mask"]


def _jitter(brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0) -> A.ColorJitter:
    return A.ColorJitter(brightness, contrast, saturation, hue, p=0.5)
