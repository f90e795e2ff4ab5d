"""HRDA: the whole image at half resolution, its details at full resolution, and a learned attention between them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.resize import grid_size, image_size, pad_to_multiple, window_starts
from protoseg.functional.sampling import pixel_rows
from protoseg.models.decoders import SegFormerDecoder
from protoseg.models.encoders import Encoder
from protoseg.models.segmentor import Maps, Segmentor, crop_to_grid
from protoseg.nn import Head
from protoseg.types import Detail, ProtosegError, SegOutput, Size

CONTEXT_SCALE = 2  # the paper's s: the context has half the resolution of the detail
WINDOWS_AT_ONCE = 8  # bounds the memory of evaluation; the result does not depend on it


def fuse(context: Tensor, detail: Tensor, attention: Tensor, corner: tuple[int, int]) -> Tensor:
    """(1 - a) context + a detail where the detail lies, the context elsewhere (HRDA, arXiv 2204.13132, Sec. 3.2).

    Of context ``b c h w`` and detail ``b c i j``, both on the output grid (upsampled before), attention in [0, 1],
    ``b c h w`` or ``b 1 h w``, and the row and column of the detail's first cell.
    """
    (top, left), (height, width) = corner, detail.shape[-2:]
    inside = (..., slice(top, top + height), slice(left, left + width))
    fused = context.clone()
    fused[inside] = torch.lerp(context[inside], detail, attention[inside])
    return fused


def fuse_released(context: Tensor, detail: Tensor, attention: Tensor, corner: tuple[int, int]) -> Tensor:
    """The order of the released code: weights the context on its own grid, and upsamples the products.

    Attention outside the crop is zeroed before, which mixes zeros into the logits along the crop's border, on both of
    its sides. Arguments as of :func:`fuse`, but context and attention on the context's grid, ``CONTEXT_SCALE`` times as
    coarse; the result is on the detail's.
    """
    (top, left), (height, width) = corner, detail.shape[-2:]
    mask = torch.zeros_like(attention[:, :1])
    rows, columns = (slice(a // CONTEXT_SCALE, -(-(a + n) // CONTEXT_SCALE)) for a, n in ((top, height), (left, width)))
    mask[..., rows, columns] = 1
    attention = attention * mask
    fused, weight = _upsample((1 - attention) * context), _upsample(attention)
    inside = (..., slice(top, top + height), slice(left, left + width))
    fused[inside] += weight[inside] * detail
    return fused


def _upsample(feature: Tensor) -> Tensor:
    """From the context's grid to the detail's."""
    return F.interpolate(feature, scale_factor=CONTEXT_SCALE, mode="bilinear", align_corners=False)


class HRDASegmentor(Segmentor):
    """Context and detail through one network, fused by scale attention (Hoyer et al., HRDA, arXiv 2204.13132).

    Context: the image at half resolution. Detail, by the same encoder, decoder and head: in training one crop of
    ``detail_size`` at a random place (the same for the whole batch, from torch's global generator); in evaluation
    windows of that size over the whole image, half a window apart, averaged.

    Logits are fused on the detail's grid, of ``stride`` pixels of the image. There lie the context's embeddings too,
    interpolated (with prototypes of unit length again, with their similarities); ``features`` are the context's own.

    Args:
        encoder, decoder, head, num_classes, auxiliary: see :class:`Segmentor`; the auxiliary head sees the context.
        detail_size: side, or height and width, of the detail in pixels: multiples of the encoder's coarsest stride.
        attention: ``(channels, strides) -> decoder`` of the scale attention; SegFormer's in the paper.
        attention_per_class: one attention channel per class (paper), or one for all, so that the number of learned
            parameters does not depend on the number of classes.
        released_fusion: fuse by :func:`fuse_released`, as networks were trained that were published.

    Raises ProtosegError: a detail size that does not fit the encoder's cells; in training an image smaller than that.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[[list[int], list[int]], nn.Module],
        head: Callable[[int, int], Head],
        num_classes: int,
        auxiliary: Callable[[list[int], list[int], int], nn.Module] | None = None,
        detail_size: int | Sequence[int] = 512,
        attention: Callable[[list[int], list[int]], nn.Module] = SegFormerDecoder,
        attention_per_class: bool = True,
        released_fusion: bool = False,
    ) -> None:
        super().__init__(encoder, decoder, head, num_classes, auxiliary)
        size = (detail_size, detail_size) if isinstance(detail_size, int) else tuple(detail_size)
        multiple = max(encoder.strides)
        if len(size) != 2 or any(side < 1 or side % multiple for side in size):
            wanted = f"a side, or height and width, that are multiples of {multiple} (the encoder's coarsest stride)"
            text = f"segmentor.detail_size: expected {wanted}, got {detail_size}"
            raise ProtosegError(f"{text}; e.g. half of data.crop_size")
        self.detail_size = (size[0], size[1])
        self.released_fusion = released_fusion
        # Of the encoder's maps, whose sigmoid says where, and for which class, the detail is to be trusted.
        scale_decoder: Any = attention(encoder.channels, encoder.strides)
        classifier = nn.Conv2d(scale_decoder.out_channels, num_classes if attention_per_class else 1, 1)
        parts = {"decoder": scale_decoder, "dropout": nn.Dropout2d(0.1), "classifier": classifier}
        self.attention = nn.Sequential(OrderedDict(parts))

    @property
    def feature_strides(self) -> list[int]:
        """Pixels of the image per cell of each map in ``SegOutput.features``, the context's maps."""
        return [CONTEXT_SCALE * stride for stride in self.encoder.strides]

    def encoder_maps(self, image: Tensor, encoder: nn.Module) -> list[Tensor]:
        """The context's maps, see :meth:`Segmentor.encoder_maps`."""
        context = self._context(self._encoder_input(image))
        return self._cropped(self._encode(context, encoder), image_size(context))

    def segment(self, image: Tensor, encoder: Maps | None = None) -> SegOutput:
        """Segment a batch; arguments and result as of :meth:`Segmentor.segment`, in training with ``detail``."""
        image, encoder = self._encoder_input(image), encoder or self.encoder
        context = self._context(image)
        size, context_size = image_size(image), image_size(context)
        features = self._encode(context, encoder)
        output = self._decode(features, context_size)
        detail = self._random_detail(image, encoder) if self.training else self._sliding_detail(image, encoder)
        embeddings, similarities = self._upsampled(output.embeddings, size), None
        if self.head.memory is not None:
            with no_autocast(embeddings):
                embeddings = F.normalize(embeddings, dim=1)
                similarities = self.head.memory.similarity(pixel_rows(embeddings))
        auxiliary = self._auxiliary_logits(features, context_size)
        auxiliary = None if auxiliary is None else self._upsampled(auxiliary, size)
        logits = self.decided(self._fused(output.logits, detail, features, size))
        maps = self._cropped(features, context_size)
        return SegOutput(logits, embeddings, similarities, maps, auxiliary, detail if self.training else None)

    def _fused(self, context: Tensor, detail: Detail, features: list[Tensor], size: Size) -> Tensor:
        attention = at_least_fp32(self.attention(features)).sigmoid()
        corner = (detail.box[0] // self.stride, detail.box[1] // self.stride)
        if self.released_fusion:
            height, width = context.shape[-2:]
            attention = self._on_grid(attention, features)[..., :height, :width]
            return crop_to_grid(fuse_released(context, detail.logits, attention, corner), size, self.stride)
        attention = crop_to_grid(self._on_grid(attention, features, CONTEXT_SCALE), size, self.stride)
        return fuse(self._upsampled(context, size), detail.logits, attention, corner)

    @staticmethod
    def _context(image: Tensor) -> Tensor:
        # Bilinear resizing by one half is the mean of 2 x 2 pixels; pooling also keeps an odd last row or column.
        return F.avg_pool2d(image, CONTEXT_SCALE, ceil_mode=True, count_include_pad=False)

    def _upsampled(self, feature: Tensor, size: Size) -> Tensor:
        """From the context's grid to the output grid."""
        return crop_to_grid(_upsample(feature), size, self.stride)

    def _random_detail(self, image: Tensor, encoder: Maps) -> Detail:
        """Logits of a random crop of the normalised image."""
        top, left, height, width = box = self._random_box(image_size(image))
        crop = image[..., top : top + height, left : left + width]
        return Detail(self._decode(self._encode(crop, encoder), (height, width)).logits, box)

    def _random_box(self, size: Size) -> tuple[int, int, int, int]:
        if any(detail > side for detail, side in zip(self.detail_size, size, strict=True)):
            text = f"HRDA: expected training images of at least the detail crop {self.detail_size}, got {size}"
            raise ProtosegError(f"{text}; set segmentor.detail_size to half of data.crop_size")
        step = CONTEXT_SCALE * self.stride  # whole cells of the context's grid, hence of the output grid
        places = [(side - detail) // step + 1 for side, detail in zip(size, self.detail_size, strict=True)]
        top, left = (step * int(torch.randint(number, ())) for number in places)  # on the CPU: no wait for the device
        return top, left, *self.detail_size

    def _sliding_detail(self, image: Tensor, encoder: Maps) -> Detail:
        """Logits of the whole normalised image, averaged over overlapping windows that begin on cells of the grid."""
        stride, batch, size = self.stride, len(image), image_size(image)
        grid = grid_size(size, stride)
        cells = [min(side // stride, length) for side, length in zip(self.detail_size, grid, strict=True)]
        rows, columns = (window_starts(n, side, max(1, side // 2)) for n, side in zip(grid, cells, strict=True))
        total = at_least_fp32(image).new_zeros(batch, self.num_classes, *grid)
        count = total.new_zeros(batch, 1, *grid)
        # zeros are the mean colour, which is also what the encoder is padded with
        image = pad_to_multiple(image, stride)
        window = (cells[0] * stride, cells[1] * stride)
        windows = [(i, y, x) for y, x in product(rows, columns) for i in range(batch)]
        for first in range(0, len(windows), WINDOWS_AT_ONCE):
            chunk = windows[first : first + WINDOWS_AT_ONCE]
            crops = [image[i, :, y * stride :, x * stride :][:, : window[0], : window[1]] for i, y, x in chunk]
            logits = self._decode(self._encode(torch.stack(crops), encoder), window).logits
            for (i, y, x), part in zip(chunk, logits, strict=True):
                place = (i, slice(None), slice(y, y + cells[0]), slice(x, x + cells[1]))
                total[place] += part
                count[place] += 1
        return Detail(total / count, (0, 0, *size))
