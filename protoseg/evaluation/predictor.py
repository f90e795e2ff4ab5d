"""From a batch of images to label maps at each image's own resolution: whole, sliding window, multi-scale, flip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.resize import upsample_logits, window_starts
from protoseg.types import ProtosegError, SegOutput

MODES = ("whole", "slide")
MAX_SCALE = 8  # of an image in memory 64 times as many pixels
WINDOWS_AT_ONCE = 8  # bounds the memory of a sliding window; the result does not depend on it

T = TypeVar("T")


class SegmentationModel(Protocol):
    """What the predictor needs of a model: a call on ``b 3 h w``, and how much coarser its logits are."""

    @property
    def stride(self) -> int: ...

    def __call__(self, image: Tensor, /) -> SegOutput: ...


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode, and afterwards in the mode they were in."""
    training = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)


class Predictor:
    """Runs a model over images of any size. Holds settings only: no parameters, no state.

    Images padded to one batch are cropped to their true sizes, and those of equal size run together, so that
    results do not depend on the batch size. The caller puts the model into eval mode and chooses the autocast.

    Args:
        mode: ``whole`` runs each image at once; ``slide`` runs overlapping windows and averages their logits.
        crop_size: the window, one number or (height, width), in pixels; ``slide`` only.
        stride: step between windows, same form; two thirds of ``crop_size`` if None. ``slide`` only.
        scales: the image is also run at these multiples of its size; softmax probabilities are averaged.
        flip: also run the mirrored image, and average.

    Raises:
        ProtosegError: settings that contradict each other.
    """

    def __init__(
        self,
        mode: str = "whole",
        crop_size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ProtosegError(f"inference.mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if mode == "whole" and (crop_size is not None or stride is not None):
            raise ProtosegError(
                f"inference: expected no crop_size and no stride with mode=whole, got crop_size={crop_size} and "
                f"stride={stride}; set mode=slide, or leave them out"
            )
        if mode == "slide" and crop_size is None:
            raise ProtosegError("inference.crop_size: expected a size with mode=slide, got none; e.g. [512, 512]")
        if not _positive_numbers(scales) or max(scales) > MAX_SCALE:
            raise ProtosegError(
                f"inference.scales: expected a list of positive numbers up to {MAX_SCALE}, got {scales}; e.g. [1.0]"
            )
        self.mode = mode
        self.crop_size = None if crop_size is None else _pair("crop_size", crop_size)
        self.stride: tuple[int, int] | None = None
        if self.crop_size is not None:
            thirds = [max(1, 2 * side // 3) for side in self.crop_size]
            self.stride = _pair("stride", thirds if stride is None else stride)
            if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
                raise ProtosegError(
                    f"inference.stride: expected at most the crop size {self.crop_size}, got {self.stride}, which "
                    "leaves pixels between the windows"
                )
        self.scales = tuple(float(scale) for scale in scales)
        self.flip = bool(flip)

    @property
    def averages(self) -> bool:
        """Whether several runs of an image are averaged: ``_scores`` then gives probabilities, else logits."""
        return self.flip or self.scales != (1.0,)

    def settings(self) -> dict[str, object]:
        """The settings as plain values, for reports."""
        return {name: getattr(self, name) for name in ("mode", "crop_size", "stride", "scales", "flip")}

    def __call__(self, model: SegmentationModel, image: Tensor, size: Tensor) -> list[Tensor]:
        """Class probabilities of each image, ``c h w`` at its own size.

        Images are uint8 (or float in 0 to 1) ``b 3 h w``, their sizes before padding int64 ``b 2``.
        """
        return self._per_image(model, image, size, self._probability)

    def predict(self, model: SegmentationModel, image: Tensor, size: Tensor) -> list[Tensor]:
        """The likeliest class of each pixel, int64 ``h w`` per image; arguments as of the call."""
        return self._per_image(model, image, size, lambda scores: scores.argmax(1))

    def predict_with_confidence(
        self, model: SegmentationModel, image: Tensor, size: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the likeliest class, int64 ``h w``, and its probability, ``h w``; arguments as of the call."""

        def reduce(scores: Tensor) -> list[tuple[Tensor, Tensor]]:
            confidence, label = self._probability(scores).max(1)
            return list(zip(label, confidence, strict=True))

        return self._per_image(model, image, size, reduce)

    @torch.no_grad()
    def _per_image(
        self, model: SegmentationModel, image: Tensor, size: Tensor, reduce: Callable[[Tensor], Sequence[T] | Tensor]
    ) -> list[T]:
        """Run the images group by group; ``reduce`` turns scores ``n c h w`` into one value per image.

        Reducing within the group keeps only one group's full-size scores in memory: 847 classes are large.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (height, width) in enumerate(size.tolist()):
            groups[height, width].append(i)
        results: dict[int, T] = {}
        for (height, width), members in groups.items():
            group = image[members, :, :height, :width]
            results.update(zip(members, reduce(self._scores(model, group)), strict=True))
        return [results[i] for i in range(len(image))]

    def _probability(self, scores: Tensor) -> Tensor:
        return scores if self.averages else scores.softmax(1)

    def _scores(self, model: SegmentationModel, image: Tensor) -> Tensor:
        """``b 3 h w`` to ``b c h w``: logits of a single run, or averaged probabilities of several."""
        if not self.averages:
            return self._logits(model, image)
        total = image.new_zeros((), dtype=torch.float32)
        for scale in self.scales:
            scaled = _rescale(image, scale)
            for view in (scaled, scaled.flip(-1)) if self.flip else (scaled,):
                logits = self._logits(model, view)
                if logits.shape[2:] != image.shape[2:]:
                    logits = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)
                total = total + (logits.softmax(1) if view is scaled else logits.softmax(1).flip(-1))
        return total / (len(self.scales) * (1 + self.flip))

    def _logits(self, model: SegmentationModel, image: Tensor) -> Tensor:
        """Logits at the image's own size, ``b 3 h w`` to ``b c h w``, at least fp32."""
        if self.crop_size is None or self.stride is None:
            return _full_size_logits(model, image)
        return slide_logits(model, image, self.crop_size, self.stride)


def slide_logits(
    model: SegmentationModel, image: Tensor, crop_size: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Logits averaged over overlapping windows, ``b 3 h w`` to ``b c h w``.

    The last window of a row or column ends at the border, so that every window is full; a side of the image
    smaller than the window makes the window that small.
    """
    (height, width), batch = image.shape[2:], len(image)
    window = (min(crop_size[0], height), min(crop_size[1], width))
    corners = [
        (y, x) for y in window_starts(height, window[0], stride[0]) for x in window_starts(width, window[1], stride[1])
    ]
    windows = [(i, y, x) for y, x in corners for i in range(batch)]
    total, count = None, image.new_zeros(1, height, width, dtype=torch.float32)
    for y, x in corners:
        count[:, y : y + window[0], x : x + window[1]] += 1
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        chunk = windows[first : first + WINDOWS_AT_ONCE]
        crops = torch.stack([image[i, :, y : y + window[0], x : x + window[1]] for i, y, x in chunk])
        logits = _full_size_logits(model, crops)
        if total is None:
            total = logits.new_zeros(batch, logits.shape[1], height, width)
        for (i, y, x), part in zip(chunk, logits, strict=True):
            total[i, :, y : y + window[0], x : x + window[1]] += part
    assert total is not None
    return total / count


def _full_size_logits(model: SegmentationModel, image: Tensor) -> Tensor:
    output = model(image)
    logits = output.logits
    # bf16 has 8 bits: upsampled in it, many pixels between two classes would tie.
    with no_autocast(logits):
        size = (image.shape[2], image.shape[3])
        return upsample_logits(at_least_fp32(logits), size, model.stride, output.align_corners)


def _rescale(image: Tensor, scale: float) -> Tensor:
    """The image at ``scale`` times its size; untouched at scale 1.

    As training images are scaled (``cv2.resize``, to a grey level): bilinear between the nearest pixels, in whole grey
    levels. Smoothing before (antialiasing) would show the network images that it was not trained on.
    """
    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[2:]]
    scaled = F.interpolate(
        image if image.is_floating_point() else image.float(), size, mode="bilinear", align_corners=False
    )
    return scaled if image.is_floating_point() else scaled.round().to(torch.uint8)


def _positive_numbers(values: object) -> bool:
    if not isinstance(values, Sequence) or not values:
        return False
    return all(isinstance(value, (int, float)) and value > 0 for value in values)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ProtosegError(f"inference.{name}: expected a positive integer or (height, width), got {value}")
    return pair[0], pair[1]


def choose_device(name: str | None) -> torch.device:
    """The named device, or the best there is; raises ProtosegError if it is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ProtosegError(
            f"device: cannot use {name!r} here ({str(error).splitlines()[0]}); try device=cpu"
        ) from error
    return device
