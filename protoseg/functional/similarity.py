"""Cosines of many pixels to many prototypes: computed once, read in several ways, one product for their gradient.

Training asks four things of the ``n c k`` cosines: the best of each class (class scores), those of a pixel's own class
(clustering), that to the assigned prototype (PPC, PPD) and the sum of their exponentials (PPC). Written plainly, each
makes its own ``n c k`` tensors, forward and backward. :class:`FusedSimilarities` goes through the cosines by few rows,
which then lie in the processor's cache, and adds up all readings' gradients before the one product with the prototypes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from protoseg.functional.precision import at_least_fp32, no_autocast, times_table
from protoseg.types import SegOutput, Similarities

KEEP_BYTES = 2**30
# Elements of the rows that are worked on at once: what a processor's cache holds, or what keeps a GPU busy.
PIECE_CPU, PIECE_GPU = 3 * 2**20, 2**25
MIN_ROWS = 256  # fewer would make the matrix products slow
SIDE = 7  # cells that `unknown` averages; 5 to 15 were as good for cars on CamVid, 1 clearly worse (docs/results.md)
# Adds the share of one reading, given the gradient of its value, to the gradient of the cosines of some rows, if any.
_Add = Callable[[Tensor | None, Tensor, slice, Tensor], Tensor]


class DenseSimilarities:
    """The plain formulas on a tensor ``n c k``: what the fused form must equal, and what a compiler fuses by itself."""

    def __init__(self, cosines: Tensor) -> None:
        self.cosines = cosines
        self.num_classes, self.num_prototypes = cosines.shape[1:]

    @property
    def scores(self) -> Tensor:
        return self.cosines.amax(2)

    def own(self, label: Tensor) -> Tensor:
        index = label.clamp_min(0).view(-1, 1, 1).expand(-1, 1, self.num_prototypes)
        return self.cosines.detach().gather(1, index).squeeze(1)

    def at(self, target: Tensor) -> Tensor:
        return at_least_fp32(self.cosines).flatten(1).gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)

    def logsumexp(self, temperature: float) -> Tensor:
        return (at_least_fp32(self.cosines).flatten(1) / temperature).logsumexp(1)


class FusedSimilarities:
    """The same values and gradients from unit vectors, without an ``n c k`` tensor for every step on the way.

    The cosines are kept for the backward pass where they fit into ``keep_bytes``, and computed again, piece by piece,
    where not: memory is then bounded, whatever ``n``, ``c`` and ``k``. Without gradient they are never kept. The
    gradient is that of the embeddings ``n d``, fp32 or fp64; it cannot be differentiated again, and none reaches the
    prototypes ``c k d``, which are taken as they are now: later changes in place have no effect.
    """

    def __init__(self, embeddings: Tensor, prototypes: Tensor, keep_bytes: int = KEEP_BYTES) -> None:
        self.num_classes, self.num_prototypes = prototypes.shape[:2]
        size = len(embeddings) * self.num_classes * self.num_prototypes * embeddings.element_size()
        keep = embeddings.requires_grad and torch.is_grad_enabled() and size <= keep_bytes
        self._store = _Store(embeddings.detach(), prototypes, keep)
        self._gradient = _Product.apply(embeddings, self._store)

    @cached_property
    def scores(self) -> Tensor:
        c, k, kept = self.num_classes, self.num_prototypes, self._store.kept is not None
        best = self._store.embeddings.new_empty(len(self._store.embeddings), c)
        for rows, cosines in self._store.pieces():
            torch.amax(cosines.view(-1, k, c), 1, out=best[rows])

        def add(total: Tensor | None, cosines: Tensor, rows: slice, gradient: Tensor) -> Tensor:
            cosines = cosines.view(-1, k, c)
            # Cosines that are computed again may differ in a bit from those before.
            highest = best[rows] if kept else cosines.amax(1)
            nearest = torch.eq(cosines, highest.unsqueeze(1), out=torch.empty_like(cosines))
            return _added(total, nearest, (gradient[rows] / nearest.sum(1)).unsqueeze(1))

        return self._reading(best, add)

    def own(self, label: Tensor) -> Tensor:
        c, k = self.num_classes, self.num_prototypes
        index = label.clamp_min(0).view(-1, 1, 1).expand(-1, k, 1)
        own = self._store.embeddings.new_empty(len(label), k)
        for rows, cosines in self._store.pieces():
            own[rows] = cosines.view(-1, k, c).gather(2, index[rows]).squeeze(2)
        return own

    def at(self, target: Tensor) -> Tensor:
        target, k = target.clamp_min(0), self.num_prototypes
        column = (target % k * self.num_classes + target // k).unsqueeze(1)
        value = torch.cat([cosines.gather(1, column[rows]).squeeze(1) for rows, cosines in self._store.pieces()])

        def add(total: Tensor | None, cosines: Tensor, rows: slice, gradient: Tensor) -> Tensor:
            total = torch.zeros_like(cosines) if total is None else total
            return total.scatter_add_(1, column[rows], gradient[rows].unsqueeze(1))

        return self._reading(value, add)

    def logsumexp(self, temperature: float) -> Tensor:
        highest = self.scores.detach().amax(1, keepdim=True)
        value = torch.empty_like(highest)
        for rows, cosines in self._store.pieces():
            torch.sum(_scaled(cosines, highest[rows], temperature).exp_(), 1, keepdim=True, out=value[rows])
        value = value.log_() * temperature + highest

        def add(total: Tensor | None, cosines: Tensor, rows: slice, gradient: Tensor) -> Tensor:
            share = _scaled(cosines, value[rows], temperature).exp_()
            return _added(total, share, gradient[rows].unsqueeze(1) / temperature)

        return self._reading(value.squeeze(1) / temperature, add)

    def _reading(self, value: Tensor, add: _Add) -> Tensor:
        return _Reading.apply(self._gradient, self._store, value, add)


class _Store:
    """The cosines, kept or made when asked for, and the gradients of their readings."""

    def __init__(self, embeddings: Tensor, prototypes: Tensor, keep: bool) -> None:
        self.embeddings = embeddings
        # Columns by prototype, then class: the best of every class is found for many at once.
        self.table = prototypes.detach().transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(0, 1)
        size = PIECE_CPU if embeddings.device.type == "cpu" else PIECE_GPU
        size = max(MIN_ROWS, size // len(self.table))
        self.rows = [slice(start, start + size) for start in range(0, len(embeddings), size)]
        self.kept: list[Tensor] | None = [] if keep else None
        self.readings: dict[_Add, Tensor] = {}

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their cosines, ``r k*c``, one piece after the other."""
        for number, rows in enumerate(self.rows):
            if self.kept is not None and number < len(self.kept):
                yield rows, self.kept[number]
                continue
            with no_autocast(self.embeddings):
                cosines = times_table(self.embeddings[rows], self.table)
            if self.kept is not None:
                self.kept.append(cosines)
            yield rows, cosines

    def gradient(self) -> Iterator[Tensor]:
        """Of the embeddings, ``r d``, one piece after the other, from the gradients of all readings."""
        columns = self.table.T.contiguous()
        for rows, cosines in self.pieces():
            total: Any = None  # of no reading there is no gradient, and this is not called
            for add, gradient in self.readings.items():
                total = add(total, cosines, rows, gradient)
            with no_autocast(total):
                part = times_table(total, columns)
            del total  # before the next piece needs as much
            yield part


class _Product(torch.autograd.Function):
    """Where all readings meet: its backward, called after theirs, makes the gradient of the embeddings."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, store: _Store) -> Tensor:
        ctx.store = store
        return embeddings.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        store: _Store = ctx.store
        parts = store.gradient()
        if len(store.rows) == 1:
            result = next(parts)  # nothing to put together: a copy saved
        else:
            result = torch.empty_like(store.embeddings)
            for rows, part in zip(store.rows, parts, strict=True):
                result[rows] = part
        store.readings.clear()
        return result, None


class _Reading(torch.autograd.Function):
    """A value read from the cosines; its backward leaves the gradient in the store for ``_Product``."""

    @staticmethod
    def forward(ctx: Any, meeting: Tensor, store: _Store, value: Tensor, add: _Add) -> Tensor:
        ctx.store, ctx.add = store, add
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        ctx.store.readings[ctx.add] = gradient
        return gradient.new_zeros(()), None, None, None


def similarities(embeddings: Tensor, prototypes: Tensor) -> Similarities:
    """Cosines of unit vectors ``n d`` to prototypes ``c k d``: fused, or plain while ``torch.compile`` looks on."""
    if torch.compiler.is_compiling():
        c, k, d = prototypes.shape
        return DenseSimilarities((embeddings @ prototypes.detach().reshape(c * k, d).T).view(-1, c, k))
    return FusedSimilarities(embeddings, prototypes)


def _added(total: Tensor | None, share: Tensor, factor: Tensor) -> Tensor:
    """``total + share * factor``, ``r k*c``; the first one is written over ``share``, which saves two passes."""
    if total is None:
        return share.mul_(factor).flatten(1)
    total.view_as(share).addcmul_(share, factor)
    return total


def _scaled(cosines: Tensor, offset: Tensor, temperature: float) -> Tensor:
    """(cosines - offset) / temperature, in one pass."""
    return torch.add(offset / -temperature, cosines, alpha=1 / temperature)


def unknown(output: SegOutput, taught: Sequence[int] = ()) -> Tensor:
    """How unlike all classes every cell is, ``b 1 h w``: one minus the cosine to the nearest prototype, in [0, 2].

    Without prototypes it is minus the largest logit (Hendrycks et al., arXiv 1911.11132), in no fixed range. It is the
    mean over ``SIDE * SIDE`` cells, as things are larger, and as the borders between classes are unlike both. Cells
    called a class that was ``taught`` after the training, which other maps than the embedding find, are like it: 0.
    """
    b, _, h, w = output.logits.shape
    if output.similarities is None:
        strange = -output.logits.amax(1, keepdim=True)
    else:
        strange = 1 - output.similarities.scores.amax(1).view(b, 1, h, w)
        called = output.logits.argmax(1, keepdim=True) if taught else strange
        for i in taught:
            strange = strange.masked_fill(called == i, 0)
    return F.avg_pool2d(strange.float(), SIDE, 1, SIDE // 2, count_include_pad=False)
