"""What was seen lately of every class: first-in-first-out queues of embeddings, alike on every rank."""

import torch
from torch import Tensor, nn

from protoseg.distributed import all_gather
from protoseg.types import ProtosegError


class ClassQueues(nn.Module):
    """A ring buffer of embeddings for every class. No gradient, all state in buffers, no loop over classes.

    One :meth:`push` writes at most ``per_step`` embeddings per class, over all ranks. Raises ProtosegError: sizes below
    1, or ``per_step`` larger than the queue.
    """

    def __init__(self, num_classes: int, length: int, dim: int, per_step: int) -> None:
        super().__init__()
        if min(num_classes, dim, per_step) < 1 or per_step > length:
            text = "class queues: expected at least one class and channel and 1 <= per_step <= length"
            raise ProtosegError(f"{text}, got {num_classes=}, {dim=}, {per_step=}, {length=}")
        self.per_step = per_step
        self.features = nn.Buffer(torch.zeros(num_classes, length, dim))  # the first ``fill`` of each are in use
        self.pointer = nn.Buffer(torch.zeros(num_classes, dtype=torch.int64))  # slot of each that is written next
        self.fill = nn.Buffer(torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, valid: Tensor, key: Tensor | None = None) -> None:
        """Write embeddings of all ranks over the oldest ones, the same on every rank.

        If a class has more than ``per_step``, those with the smallest keys are written: with random keys a fair
        sample of all ranks, as one process would draw it. Features are ``c p d``, the same ``p`` on all ranks; those
        exist that are ``valid``, bool ``c p``; keys are ``c p`` in [0, 1], uniform at random by default.
        """
        if key is None:
            key = torch.rand(valid.shape, device=valid.device)
        key = all_gather(key.where(valid, 2.0).T).T
        features = all_gather(features.transpose(0, 1)).transpose(0, 1).to(self.features.dtype)
        key, chosen = key.topk(min(self.per_step, key.shape[1]), dim=1, largest=False)
        written = (key <= 1) & self.training  # what is validated is not kept
        length = self.features.shape[1]
        slot = (self.pointer.unsqueeze(1) + torch.arange(key.shape[1], device=key.device)) % length
        row = torch.arange(len(slot), device=slot.device).unsqueeze(1)
        # The slots of a class differ (per_step <= length); those with nothing to write are given back what they hold.
        self.features[row, slot] = features[row, chosen].where(written.unsqueeze(2), self.features[row, slot])
        count = written.sum(1)
        self.pointer.copy_((self.pointer + count) % length)
        self.fill.copy_((self.fill + count).clamp_max(length))

    @torch.no_grad()
    def draw(self, *size: int) -> tuple[Tensor, Tensor]:
        """With replacement from each class's own queue: ``c *size d``, and whether it holds any, bool ``c *size``."""
        shape = (len(self.fill), *size)
        row = torch.arange(shape[0], device=self.fill.device).view(-1, *[1] * len(size)).expand(shape)
        return self._pick(row), (self.fill > 0)[row]

    @torch.no_grad()
    def draw_others(self, size: int) -> tuple[Tensor, Tensor]:
        """From queues of other classes, each equally likely: ``c size d``, and whether they exist, bool ``c size``."""
        classes = len(self.fill)
        other = (self.fill > 0) & ~torch.eye(classes, dtype=torch.bool, device=self.fill.device)
        # The j-th other class, j uniform: the first at which the running count of others reaches j + 1.
        running = other.cumsum(1)
        total = running[:, -1:]
        j = (torch.rand(classes, size, device=self.fill.device) * total).long().clamp_max((total - 1).clamp_min(0))
        return self._pick(torch.searchsorted(running, j + 1).clamp_max(classes - 1)), (total > 0).expand(-1, size)

    def _pick(self, row: Tensor) -> Tensor:
        """One embedding at random from the queue of each class in ``row``."""
        fill = self.fill[row]
        slot = (torch.rand(row.shape, device=row.device) * fill).long()
        return self.features[row, torch.minimum(slot, (fill - 1).clamp_min(0))]
