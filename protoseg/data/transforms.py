"""Training augmentation on albumentations: scale, crop, flip, colour. Evaluation changes nothing."""

import math
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

from protoseg.data.label_spaces import Ids, ignored_in
from protoseg.types import ProtosegError

Pixels = NDArray[Any]  # ``h w c``
PAD_IMAGE = 127
MAX_CROPS = 10  # as mmsegmentation's RandomCrop(cat_max_ratio)
# The strengths of mmsegmentation's PhotoMetricDistortion, each applied with probability 1/2. Brightness is a factor
# here, not an offset of up to 32 of 255; hue is a share of the circle (18 of OpenCV's 180).
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 180


class Wanted(NamedTuple):
    """A class of which a crop is to hold more than ``pixels`` pixels."""

    train_id: int
    pixels: float


class ScaledCrop(A.RandomCrop):  # type: ignore[misc]
    """Scaling by a random factor, then ``RandomCrop``; of the image, only what the crop shows is scaled.

    Draws the crop up to ``MAX_CROPS`` times while one class, or what is not annotated, has more than
    ``max_class_share`` of its pixels, not ignored ones; all that as often while it lacks ``wanted``; the last stands.
    """

    # Set after construction: albumentations 2 checks the arguments of __init__ against a schema of their own.
    scale: tuple[float, float] = (1, 1)
    aspect: tuple[float, float] = (1, 1)
    max_class_share: float | None = None
    wanted: Wanted | None = None

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        label = data["mask"]
        if (self.scale, self.aspect) != ((1, 1), (1, 1)):
            factor = self.py_random.uniform(*self.scale)
            wider = 1 if self.aspect == (1, 1) else math.sqrt(self.py_random.uniform(*self.aspect))
            height, width = (int(label.shape[0] * factor / wider), int(label.shape[1] * factor * wider))
            height, width = max(1, height), max(1, width)
            label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        for _ in range(MAX_CROPS):
            for _ in range(MAX_CROPS):
                drawn: dict[str, Any] = super().get_params_dependent_on_data({"shape": label.shape}, {})
                crop = self.apply_to_mask(label, label, **drawn)
                if self.max_class_share is None or largest_class_share(crop) <= self.max_class_share:
                    break
            if self.wanted is None or np.count_nonzero(crop == self.wanted.train_id) > self.wanted.pixels:
                break
        return {"label": label, **drawn}

    def apply_to_mask(self, mask: Ids, label: Ids, **crop: Any) -> Ids:
        return super().apply_to_mask(label, **crop)  # type: ignore[no-any-return]

    def apply(self, img: NDArray[Any], label: Ids, crop_coords: tuple[int, ...], **crop: Any) -> NDArray[Any]:
        pad = crop["pad_params"] or dict.fromkeys(("pad_top", "pad_left"), 0)
        left, top, right, bottom = np.subtract(crop_coords, 2 * (pad["pad_left"], pad["pad_top"])).tolist()
        height, width = label.shape
        shown = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        part = scaled_part(img, (height, width), shown)
        if part.shape[:2] == (bottom - top, right - left):
            return part
        fill = PAD_IMAGE if img.dtype == np.uint8 else PAD_IMAGE / 255
        margins = (shown[1] - top, bottom - shown[3]), (shown[0] - left, right - shown[2]), (0, 0)
        return np.pad(part, margins, constant_values=fill)


def scaled_part(image: Pixels, size: tuple[int, int], box: tuple[int, int, int, int]) -> Pixels:
    """What ``cv2.resize`` of the whole image, and a slice of that, would give: bilinear, to a grey level or two.

    Of ``h w c``, scaled to ``size`` (height, width), ``box`` is left, top, right and bottom in pixels of the result.
    """
    left, top, right, bottom = box
    if size == image.shape[:2]:
        return np.ascontiguousarray(image[top:bottom, left:right])
    # Pixel centres are at halves; the inverse map takes pixels of the part to pixels of the image.
    y, x = image.shape[0] / size[0], image.shape[1] / size[1]
    inverse = np.array([[x, 0, (left + 0.5) * x - 0.5], [0, y, (top + 0.5) * y - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    parts = []
    for first in range(0, image.shape[2], 4):  # OpenCV warps four channels at most
        some = np.ascontiguousarray(image[..., first : first + 4])
        part = cv2.warpAffine(some, inverse, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        parts.append(part.reshape(*part.shape[:2], -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def largest_class_share(label: Ids) -> float:
    """Share of the most frequent class among the labelled pixels of ``label`` (``h w``); 1 if none is labelled."""
    ignored = ignored_in(label)
    counts = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [ignored + 1], [0, ignored + 1])[:ignored]
    total = counts.sum()
    return float(counts.max() / total) if total > 0 else 1.0


class TrainTransform:
    """Random scale, crop (padded if the image is smaller), horizontal flip and photometric distortion.

    ``scale`` is the range of the factor before cropping to ``crop_size`` (height, width), ``aspect`` that of width by
    height at the same area. ``photometric`` distorts brightness, contrast, saturation and hue (of images that are not
    uint8 RGB the first two); up to ``brightness`` of 255 is added or taken away besides. The crop is drawn again
    (``ScaledCrop``) while one class has more than ``max_class_share``. ``augment`` are further transforms of
    albumentations, made last: of masks they take the nearest pixel, and what lies beyond the border is ignored.

    Raises ProtosegError: a size or range that makes no sense; when called, a transform that changes size or type.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        photometric: bool = True,
        max_class_share: float | None = None,
        aspect: Sequence[float] = (1.0, 1.0),
        brightness: int = 0,
        augment: Sequence[A.BasicTransform | A.BaseCompose] = (),
    ) -> None:
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ProtosegError(f"crop_size: expected [height, width] in pixels, got {list(crop_size)}")
        for name, span in (("scale", scale), ("aspect", aspect)):
            if len(span) != 2 or not 0 < span[0] <= span[1]:
                raise ProtosegError(f"{name}: expected [low, high] with 0 < low <= high, got {list(span)}")
        if max_class_share is not None and not 0 < max_class_share <= 1:
            raise ProtosegError(f"max_class_share: expected a share in (0, 1] or null, got {max_class_share}")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self._crop = ScaledCrop(*self.crop_size, pad_if_needed=True, pad_position="random", fill=PAD_IMAGE)
        self._crop.scale = (float(scale[0]), float(scale[1]))
        self._crop.aspect = (float(aspect[0]), float(aspect[1]))
        self._crop.max_class_share = max_class_share
        steps: list[Any] = [self._crop, *augment]
        for step in steps:  # and those inside them, of ``OneOf`` say, which are appended on the way
            steps += getattr(step, "transforms", ())
        self._filling = [step for step in steps if getattr(step, "fill_mask", None) is not None]
        # Brightness, contrast, saturation and hue one by one, each of them or not.
        alone = np.diag((BRIGHTNESS, CONTRAST, SATURATION, HUE)).tolist()
        colors = [A.ColorJitter(*strengths, p=0.5) for strengths in alone]
        more = [A.RandomBrightnessContrast(brightness / 255, 0, p=1)] if brightness else []
        self._rgb, self._channels = (  # distorted last: the crop is usually smaller than the image
            A.Compose([self._crop, A.HorizontalFlip(p=0.5), *(last if photometric else ()), *more, *augment])
            for last in (colors, [A.RandomBrightnessContrast(BRIGHTNESS, CONTRAST, p=0.5)])
        )

    def __call__(self, image: Pixels, label: Ids, seed: int, wanted: Wanted | None = None) -> tuple[Pixels, Ids]:
        """Augment ``image`` (uint8 RGB ``h w 3``, or float32 ``h w c`` in [0, 1]) and ``label`` (``h w``).

        The result depends on these arguments alone. The crop, not the scale, is drawn again for ``wanted`` and shares.
        """
        # One generator for all steps. Compose.set_random_seed gives every step the same seed, so that their draws agree
        # (a flip would go with a dark image), and takes seven times as long.
        compose = self._rgb if image.dtype == np.uint8 else self._channels
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        self._crop.wanted = wanted
        for each in self._filling:
            each.fill_mask, each.mask_interpolation = ignored_in(label), cv2.INTER_NEAREST
        out = compose(image=image, mask=label)
        got = [(each.shape, each.dtype) for each in (out["image"], out["mask"])]
        if got != [((*self.crop_size, image.shape[2]), image.dtype), (self.crop_size, label.dtype)]:
            text = f"augment: expected image and mask of {self.crop_size}, {image.dtype} and {label.dtype}, got {got}"
            raise ProtosegError(f"{text}; drop what changes size or type (turns by 90 need a square data.crop_size)")
        return out["image"], out["mask"]
