"""Rank, world size and sum over ranks; all of them do nothing without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


@torch.no_grad()
def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum ``tensor`` over all ranks in place and return it."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of the mean over the pixels of all ranks: ``total * R / sum of counts``.

    DDP averages gradients over R ranks, so this makes R ranks train as one process on the concatenated batch,
    however unevenly the labelled pixels are spread. No pixel at all gives 0 (with gradient 0), not NaN.
    """
    count = all_reduce_(count.detach().clone().to(total.dtype))
    return total * world_size() / count.where(count > 0, 1)
