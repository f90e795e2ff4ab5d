"""From a batch of images to label maps at each image's own resolution: whole, sliding window, multi-scale, flip."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.allocator import give_back_freed_memory
from protoseg.functional.precision import at_least_fp32
from protoseg.functional.resize import image_size, upsample_rows, window_starts
from protoseg.functional.similarity import unknown
from protoseg.types import ProtosegError, SegOutput, Size, check_choice, first_line, told

MODES = ("auto", "whole", "slide")
MAX_SCALE = 8  # of an image in memory 64 times as many pixels
AT_ONCE = 2**21  # pixels that go through the network at once, 1024 x 2048; of mode auto, larger images go in windows
# Of those; context counts: of enlarged street scenes 91 % of the labels were those of whole, at 768 and 128 79 %.
WINDOW, OVERLAP = 1024, 256
PIECE = 2**22  # scores at full size that are held at once; the result does not depend on it

Model = Any  # a ``Segmentor``, or a call on ``b 3 h w`` to a ``SegOutput``, with the ``stride`` of its logits
Reduced = tuple[Tensor, ...]
Box = tuple[slice, slice]
Reduce = Callable[[Tensor], Reduced]


class Piece(NamedTuple):
    """A window of an image, rows and columns: what the network sees, what of it counts, and where that lies."""

    seen: Box
    inner: Box
    place: Box


class Doubt(NamedTuple):
    """What is said of each pixel of an image."""

    label: Tensor  # the likeliest class, int64 ``h w``
    confidence: Tensor  # its probability, ``h w``; by ``protoseg teach statistics`` that it is right, class by class
    unknown: Tensor  # see :func:`protoseg.functional.similarity.unknown`, ``h w``
    probabilities: Tensor | None = None  # of all classes, ``c h w``, where they were asked for


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
        mode: ``whole`` runs each image at once; ``slide`` runs overlapping windows and averages their logits; ``auto``
            is whole up to ``AT_ONCE`` pixels, and beyond runs windows of ``WINDOW`` that overlap by ``OVERLAP``, each
            for the pixels that are nearest to its middle.
        crop_size, stride: of ``slide`` only, the window and the step between windows, two thirds of it if None; each
            one number or (height, width), in pixels.
        scales: the image is also run at these multiples of its size; softmax probabilities are averaged.
        flip: also run the mirrored image, and average.

    Raises ProtosegError: settings that contradict each other.
    """

    def __init__(
        self,
        mode: str = "auto",
        crop_size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        check_choice("inference.mode", mode, MODES)
        if mode != "slide" and (crop_size is not None or stride is not None):
            text = f"inference: expected no crop_size and no stride with mode={mode}, got {crop_size=} and {stride=}"
            raise ProtosegError(f"{text}; set mode=slide, or leave them out")
        if mode == "slide" and crop_size is None:
            raise ProtosegError("inference.crop_size: expected a size with mode=slide, got none; e.g. [512, 512]")
        listed = scales if isinstance(scales, Sequence) else ()
        if not listed or not all(isinstance(scale, (int, float)) and 0 < scale <= MAX_SCALE for scale in listed):
            raise ProtosegError(f"inference.scales: expected a list of positive numbers to {MAX_SCALE}, got {scales}")
        self.mode = mode
        self.crop_size = None if crop_size is None else _pair("crop_size", crop_size)
        self.stride: Size | None = None
        if self.crop_size is not None:
            thirds = [max(1, 2 * side // 3) for side in self.crop_size]
            self.stride = _pair("stride", thirds if stride is None else stride)
            if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
                text = f"inference.stride: expected at most the crop size {self.crop_size}, got {self.stride}"
                raise ProtosegError(f"{text}, which leaves pixels between the windows")
        self.scales = tuple(float(scale) for scale in scales)
        self.flip = bool(flip)

    @property
    def averages(self) -> bool:
        """Whether several runs of an image are averaged: ``_scores`` then gives probabilities, else logits."""
        return self.flip or self.scales != (1.0,)

    def settings(self) -> dict[str, object]:
        """The settings as plain values, for reports."""
        return {name: getattr(self, name) for name in ("mode", "crop_size", "stride", "scales", "flip")}

    def __call__(self, model: Model, image: Tensor, size: Tensor) -> list[Tensor]:
        """Class probabilities of each image, ``c h w`` at its own size.

        Images are uint8 (or float in 0 to 1) ``b 3 h w``, their sizes before padding int64 ``b 2``.
        """
        return [scores for (scores,) in self.reduced(model, image, size, lambda x: (x,))]

    def reduced(self, model: Model, image: Tensor, size: Tensor, of: Reduce) -> list[Reduced]:
        """Per image what ``of`` makes of class probabilities ``n c h w``, some rows at a time, put together."""
        return self._per_image(model, image, size, lambda scores: of(self._probability(scores)))

    def predict(self, model: Model, image: Tensor, size: Tensor) -> list[Tensor]:
        """The likeliest class of each pixel, ``h w`` per image, int16 (int32 of 2**15 classes); arguments as above."""

        def reduce(scores: Tensor) -> Reduced:
            label = scores.max(1).indices  # as argmax, which on a CPU takes up to four times as long
            return (label.to(torch.int16 if scores.shape[1] < 2**15 else torch.int32),)

        return [label for (label,) in self._per_image(model, image, size, reduce)]

    def doubt(self, model: Model, image: Tensor, size: Tensor, probabilities: bool = False) -> list[Doubt]:
        """All that a model says of each image, in one pass; arguments as of the call."""
        known = getattr(model, "discriminant", None)

        def reduce(scores: Tensor) -> Reduced:
            every = self._probability(scores[:, :-1])
            confidence, label = every.max(1)
            return label, confidence, scores[:, -1], *([every] if probabilities else [])

        watched = _WithUnknown(model, known.taught if known is not None else ())
        found = [Doubt(*each) for each in self._per_image(watched, image, size, reduce)]
        if known is None:
            return found
        right = [known.log_odds(each.confidence.logit(1e-7), each.label).sigmoid() for each in found]
        return [each._replace(confidence=confidence) for each, confidence in zip(found, right, strict=True)]

    @torch.no_grad()
    def _per_image(self, model: Model, image: Tensor, size: Tensor, reduce: Reduce) -> list[Reduced]:
        """Images by size, strip by strip, for scores ``n c h w`` are large: ``reduce`` turns those of a strip."""
        groups: dict[Size, list[int]] = defaultdict(list)
        for i, (height, width) in enumerate(size.tolist()):
            groups[height, width].append(i)
        results: dict[int, Reduced] = {}
        for (height, width), members in groups.items():
            chosen = image if len(members) == len(image) else image[members]  # which copies
            found: Reduced = ()
            for (rows, columns), scores in self._strips(model, chosen[..., :height, :width]):
                part = reduce(scores)
                found = found or tuple(values.new_empty(*values.shape[:-2], height, width) for values in part)
                # At once: small tensors kept between large ones that come and go leave gaps, some megabytes a strip.
                for whole, values in zip(found, part, strict=True):
                    whole[..., rows, columns] = values
            results.update(zip(members, zip(*found, strict=True), strict=True))
        return [results[i] for i in range(len(image))]

    def _strips(self, model: Model, image: Tensor) -> Iterator[tuple[Box, Tensor]]:
        """Scores of what counts of every piece, some rows at a time, and where they lie in the image."""
        for number, (seen, inner, place) in enumerate(self.pieces(*image.shape[2:])):
            if number:
                give_back_freed_memory()
            window, first = image[..., seen[0], seen[1]], 0
            for scores in [self._average(model, window)] if self.averages else self._rows(model, window):
                last = first + scores.shape[2]
                start, stop = max(first, inner[0].start), min(last, inner[0].stop)
                if start < stop:
                    rows = slice(seen[0].start + start, seen[0].start + stop)
                    yield (rows, place[1]), scores[:, :, start - first : stop - first, inner[1]]
                first = last

    def pieces(self, height: int, width: int) -> Iterator[Piece]:
        """Windows that an image is seen through one by one, so that memory is that of a window; one if it is small."""
        sliding = self.mode == "slide" and not self.averages  # in strips, whose windows overlap
        whole = self.mode == "whole" or sliding or height * width <= AT_ONCE
        for rows in _middles(height, height if whole else WINDOW):
            for columns in _middles(width, width if whole else WINDOW):
                yield Piece(*zip(rows, columns, strict=True))

    def _probability(self, scores: Tensor) -> Tensor:
        return scores if self.averages else scores.softmax(1)

    def _average(self, model: Model, image: Tensor) -> Tensor:
        """Probabilities averaged over scales and mirror images, ``b 3 h w`` to ``b c h w``."""
        total = image.new_zeros((), dtype=torch.float32)
        for scale in self.scales:
            scaled = _rescale(image, scale)
            for view in (scaled, scaled.flip(-1)) if self.flip else (scaled,):
                logits = torch.cat([*self._rows(model, view)], 2)
                if logits.shape[2:] != image.shape[2:]:
                    logits = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)
                part = model.softmax(logits) if isinstance(model, _WithUnknown) else logits.softmax(1)
                total = total + (part if view is scaled else part.flip(-1))
        return total / (len(self.scales) * (1 + self.flip))

    def _rows(self, model: Model, image: Tensor) -> Iterator[Tensor]:
        """Logits at the image's own size, at least fp32, some rows at a time."""
        size = image_size(image)
        return slide_rows(model, image, self.crop_size or size, self.stride or size)


class _WithUnknown:
    """A model whose last channel of logits is no class's: how unlike all classes a cell is."""

    def __init__(self, model: Model, taught: Sequence[int]) -> None:
        self.model, self.taught, self.stride = model, taught, model.stride

    def __call__(self, image: Tensor) -> SegOutput:
        output = self.model(image)
        return output._replace(logits=torch.cat([output.logits, unknown(output, self.taught)], 1))

    def softmax(self, logits: Tensor) -> Tensor:
        return torch.cat([logits[:, :-1].softmax(1), logits[:, -1:]], 1)


def slide_rows(model: Model, image: Tensor, crop_size: Size, stride: Size) -> Iterator[Tensor]:
    """Logits averaged over overlapping windows, ``b 3 h w`` to ``b c rows w``, from top to bottom.

    The last window of a row or column ends at the border, so that every window is full; a side of the image smaller
    than the window makes the window that small. Of the windows only the logits on the decoder's grid are kept, and
    those no longer than their rows are wanted.
    """
    (height, width), batch = image.shape[2:], len(image)
    window = (min(crop_size[0], height), min(crop_size[1], width))
    tops, lefts = window_starts(height, window[0], stride[0]), window_starts(width, window[1], stride[1])
    kept: list[tuple[int, list[Tensor]]] = []
    for top, end in zip(tops, [*tops[1:], height], strict=True):
        row, align_corners = _run(model, image[:, :, top : top + window[0]], lefts, window[1])
        kept = [(y, outputs) for y, outputs in kept if y + window[0] > top] + [(top, row)]
        classes = row[0].shape[1]
        step = max(1, PIECE // (batch * classes * width))
        for first in range(top, end, step):
            last = min(first + step, end)
            total = row[0].new_zeros(batch, classes, last - first, width)
            count = total.new_zeros(last - first, width)
            for y, outputs in kept:
                high = min(last, y + window[0])  # no higher than ``first`` where the window ends above these rows
                for x, grid in zip(lefts, outputs, strict=True) if high > first else ():
                    part = (..., slice(0, high - first), slice(x, x + window[1]))
                    total[part] += upsample_rows(grid, (first - y, high - y), window, model.stride, align_corners)
                    count[part] += 1
            yield total.div_(count)


def _run(model: Model, image: Tensor, lefts: Sequence[int], width: int) -> tuple[list[Tensor], bool]:
    """Logits of one row of windows, ``b c h w`` on the grid for each of ``lefts``, at least fp32; ``align_corners``."""
    crops = [(i, left) for left in lefts for i in range(len(image))]
    at_once = max(1, AT_ONCE // 2 // (image.shape[2] * width))
    outputs: list[Tensor] = []
    for first in range(0, len(crops), at_once):
        output = model(torch.stack([image[i, :, :, left : left + width] for i, left in crops[first : first + at_once]]))
        # bf16 has 8 bits: upsampled in it, many pixels between two classes would tie.
        outputs += at_least_fp32(output.logits).split(1)
    batch = len(image)
    rows = [outputs[k : k + batch] for k in range(0, len(outputs), batch)]
    return [torch.cat(row) if batch > 1 else row[0] for row in rows], output.align_corners


def _middles(length: int, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """Windows over a side of an image as in :class:`Piece`: each gives what is nearer to its middle than to others'."""
    starts = window_starts(length, min(window, length), window - OVERLAP if window < length else length)
    cuts = [0, *(start + OVERLAP // 2 for start in starts[1:]), length]
    for start, low, high in zip(starts, cuts, cuts[1:], strict=False):
        yield slice(start, start + window), slice(low - start, high - start), slice(low, high)


def _rescale(image: Tensor, scale: float) -> Tensor:
    """The image at ``scale`` times its size, as training images are scaled: bilinear, in whole grey levels."""
    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[2:]]
    values = image if image.is_floating_point() else image.float()
    # Without antialiasing, which would show the network images that it was not trained on.
    scaled = F.interpolate(values, size, mode="bilinear", align_corners=False)
    return scaled if image.is_floating_point() else scaled.round().to(torch.uint8)


def _pair(name: str, value: int | Sequence[int]) -> Size:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ProtosegError(f"inference.{name}: expected a positive integer or (height, width), got {value}")
    return pair[0], pair[1]


def choose_device(name: str | None) -> torch.device:
    """The named device, or the best there is; raises ProtosegError if it is not here."""
    text = f"device: cannot use {name!r} here"
    with told(lambda error: f"{text} ({first_line(error)}); try device=cpu", RuntimeError, AssertionError):
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    return device
