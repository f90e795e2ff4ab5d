"""Rank, world size, sum and concatenation over ranks; all of them do nothing without a process group."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@torch.no_grad()
def all_reduce_(tensor: Tensor, operation: str = "SUM") -> Tensor:
    """Sum ``tensor`` over all ranks (or take the ``MIN``, ``MAX`` of them) in place and return it."""
    if is_distributed():
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tensor


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of the mean over the pixels of all ranks: ``total * R / sum of counts``.

    DDP averages gradients over R ranks, so this makes R ranks train as one process on the concatenated batch,
    however unevenly the labelled pixels are spread. No pixel at all gives 0 (with gradient 0), not NaN.
    """
    count = all_reduce_(count.detach().clone().to(total.dtype))
    return total * world_size() / count.where(count > 0, 1)


def all_gather(tensor: Tensor) -> Tensor:
    """The rows of all ranks, rank 0 first: ``n …`` (the same shape on every rank) to ``R*n …``.

    The gradient of a row is the sum over the ranks that used it, so that losses over pairs of pixels on different
    ranks train as one process does. Numbers only, no bool.
    """
    if not is_distributed():
        return tensor
    from torch.distributed.nn.functional import all_gather  # which builds of torch may lack

    return torch.cat(all_gather(tensor))
