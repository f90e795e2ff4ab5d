"""Drawing pixels at random, the same number for every class, in static shapes and without a loop over classes."""

import torch
from torch import Tensor

from protoseg.types import IGNORE_INDEX


def sample_per_class(label: Tensor, num_classes: int, per_class: int) -> tuple[Tensor, Tensor]:
    """At most ``per_class`` pixels of every class, without replacement, from torch's global generator.

    From labels, int64 ``n`` (``IGNORE_INDEX`` is never drawn), by one sort of ``n`` numbers. Returns the indices of the
    pixels, int64 ``c per_class``, 0 where there is none, and which slots hold one, the first of each row.
    """
    ids, device = label.where(label != IGNORE_INDEX, num_classes), label.device
    # Random order within each class by one sort: a 24-bit fraction added to a small integer is exact in fp64.
    key, order = (ids.double() + torch.rand(len(ids), device=device, dtype=torch.float32).double()).sort()
    edges = torch.searchsorted(key, torch.arange(num_classes + 1, device=device, dtype=key.dtype))
    slot = edges[:-1, None] + torch.arange(per_class, device=device)
    valid = slot < edges[1:, None]
    return order[slot.where(valid, 0)].where(valid, 0), valid


def sample_hard_and_easy(label: Tensor, hard: Tensor, num_classes: int, per_class: int) -> tuple[Tensor, Tensor]:
    """Pixels of every class, half of them hard and half easy; where one kind is short, the other fills up.

    The "segmentation-aware hard anchor sampling" of ContrastiveSeg (Wang et al., ICCV 2021, arXiv 2101.11939). Of
    labels and ``hard`` (bool), both ``n``; the result is as of :func:`sample_per_class`.
    """
    kind = (2 * label + hard).where(label != IGNORE_INDEX, IGNORE_INDEX)
    index, valid = sample_per_class(kind, 2 * num_classes, per_class)
    index, valid = index.view(num_classes, 2, per_class), valid.view(num_classes, 2, per_class)
    easy, difficult = valid.sum(2).unbind(1)
    keep_hard = torch.minimum(difficult, (per_class - easy).clamp_min(per_class // 2))
    keep = torch.stack([torch.minimum(easy, per_class - keep_hard), keep_hard], 1)
    kept = (torch.arange(per_class, device=label.device) < keep.unsqueeze(2)).flatten(1)
    first = kept.byte().argsort(stable=True, dim=1, descending=True)[:, :per_class]
    return index.flatten(1).gather(1, first) * kept.gather(1, first), kept.gather(1, first)


def pixel_rows(x: Tensor) -> Tensor:
    """``b d h w`` to ``n d``."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Pixels of a map by their flat index: ``b d h w`` and ``…`` to ``… d``."""
    return pixel_rows(x).index_select(0, index.flatten()).view(*index.shape, -1)
