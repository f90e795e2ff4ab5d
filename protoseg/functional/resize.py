"""From the decoder's grid back to pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.types import IGNORE_INDEX, ProtosegError, Size


def image_size(image: Tensor) -> Size:
    """Height and width of ``… h w``."""
    return image.shape[-2], image.shape[-1]


def grid_size(size: Size, stride: int) -> Size:
    """Height and width of the grid of ``stride`` whose cells cover an image of ``size`` pixels."""
    return (size[0] + stride - 1) // stride, (size[1] + stride - 1) // stride  # as an exporter can follow


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and right of ``b c h w`` until height and width are multiples of ``multiple``."""
    height, width = grid_size(image_size(image), multiple)
    return F.pad(image, (0, width * multiple - image.shape[-1], 0, height * multiple - image.shape[-2]))


def upsample_logits(logits: Tensor, size: Size, stride: int, align_corners: bool = False) -> Tensor:
    """Bilinear interpolation from a grid of ``stride`` to the pixels of an image.

    Cell ``i`` covers the pixels ``i * stride`` to ``(i + 1) * stride - 1``. Resizing straight to ``size`` would stretch
    the grid wherever the image is not a multiple of the stride; so the whole cells are resized, then cropped.

    Logits ``b c h w`` become ``b c H W``, ``size`` being that of the image in pixels; with ``align_corners`` the
    outermost cells are taken for the outermost pixels, as in ProtoSeg's released code. Raises ProtosegError: they are
    not on the grid ``ceil(size / stride)``.
    """
    height, width = logits.shape[-2:]
    if (height, width) != grid_size(size, stride):
        wanted = f"a grid of {grid_size(size, stride)} for an image of {tuple(size)} at stride {stride}"
        got = f"{(height, width)}; pass the size of the image that the model was given"
        raise ProtosegError(f"upsample_logits: expected {wanted}, got {got}")
    cells = (height * stride, width * stride)
    return F.interpolate(logits, cells, mode="bilinear", align_corners=align_corners)[..., : size[0], : size[1]]


def upsample_rows(logits: Tensor, rows: tuple[int, int], size: Size, stride: int, align_corners: bool) -> Tensor:
    """Some rows of :func:`upsample_logits`, up to the order of its sums: those of all pixels may not fit into memory.

    ``rows`` are the first of them and the one after the last; the result is ``b c rows W``.
    """
    cells = logits.shape[-2]
    row = torch.arange(*rows, device=logits.device, dtype=torch.float64)
    at = row * (cells - 1) / max(1, cells * stride - 1) if align_corners else (row + 0.5) / stride - 0.5
    at = at.clamp_(0, cells - 1)
    low = at.long()
    weight = (at - low).to(logits.dtype).unsqueeze(1)
    between = logits[..., low, :].lerp(logits[..., (low + 1).clamp_max(cells - 1), :], weight)
    wide = (rows[1] - rows[0], logits.shape[-1] * stride)
    return F.interpolate(between, wide, mode="bilinear", align_corners=align_corners)[..., : size[1]]


def downsample_label(label: Tensor, size: Size, stride: int) -> Tensor:
    """The label at the centre pixel of every grid cell: ``b H W`` to ``b h w``.

    ``size`` is ``h, w``, ``stride`` pixels per cell. The released code takes each cell's top-left pixel
    (``mode="nearest"``), which shifts labels against features by half a cell.
    """
    rows, columns = (
        (torch.arange(cells, device=label.device) * stride + stride // 2).clamp_max(pixels - 1)
        for cells, pixels in zip(size, label.shape[1:], strict=True)
    )
    return label[:, rows][:, :, columns]


def window_starts(length: int, window: int, step: int) -> list[int]:
    """First pixels (or cells) of windows that cover ``length``, ``step`` apart; the last one ends at the border."""
    return [*range(0, length - window, step), length - window]


def majority_label(label: Tensor, stride: int, min_ratio: float, num_classes: int) -> Tensor:
    """The class that covers most of every cell of ``stride`` pixels, int64 ``b H W`` to ``b h w``.

    DAFormer (arXiv 2111.14887, Sec. 3.3): source labels on the grid of the feature distance. ``IGNORE_INDEX`` where it
    covers less than ``min_ratio`` of the pixels (a cell cut by the border: of those it has); ignored ones are a class.
    """
    ids = label.where(label != IGNORE_INDEX, num_classes)
    one_hot = F.one_hot(ids, num_classes + 1).permute(0, 3, 1, 2).float()
    share, winner = F.avg_pool2d(one_hot, stride, ceil_mode=True, count_include_pad=False).max(1)
    return winner.where((share >= min_ratio) & (winner < num_classes), IGNORE_INDEX)
