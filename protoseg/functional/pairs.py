"""The loss of every pixel with every other one, without a matrix of all pairs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from protoseg.functional.precision import times_table
from protoseg.types import IGNORE_INDEX

CHUNK = 256  # rows whose similarities to all columns exist at once
_Pair = tuple[Tensor, Tensor]  # of the rows, and of the columns


def hide(logits: Tensor, hidden: Tensor) -> Tensor:
    """Logits that count nothing in a softmax; finite, so that a row with nothing else has no NaN in its gradient."""
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min / 2)


def against(positive: Tensor, rivals: Tensor) -> Tensor:
    """-log(e^p / (e^p + e^r)), r being the logsumexp of the negatives."""
    return F.softplus(rivals - positive, threshold=40)  # linear above the threshold: e^-40 is below fp64's epsilon


class PairLosses(torch.autograd.Function):
    """Sum over the rows of what :func:`protoseg.functional.contrast.supervised_contrast` averages.

    The gradient is made where the similarities are, a few rows at a time, and only multiplied in the backward pass:
    three products in all, where computing similarities again would take four.

    Rows ``n d`` and columns ``m d``, fp32 or fp64, get a gradient. Nothing else does: labels int64 ``n`` and ``m``, of
    which ``IGNORE_INDEX`` is no class; weights ``n`` and ``m``; ``own``, the column of each row itself, int64 ``n``.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, labels: _Pair, weights: _Pair, own: Tensor, temperature: float
    ) -> Tensor:
        (label, column_label), (weight, column_weight) = labels, weights
        total, to_rows, to_columns = rows.new_zeros(()), torch.empty_like(rows), torch.zeros_like(columns)
        turned, known = columns.T.contiguous() / temperature, column_label != IGNORE_INDEX
        number = torch.arange(len(columns), device=own.device)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            same = label[part].unsqueeze(1) == column_label
            positive = same & known & (own[part].unsqueeze(1) != number)
            scale = weight[part] / positive.sum(1).clamp_min(1)
            similarity = times_table(rows[part], columns) / temperature
            losses, gradient = _of_some_rows(similarity, same | ~known, positive * column_weight)
            total += losses @ scale
            gradient *= scale.unsqueeze(1)
            to_rows[part] = times_table(gradient, turned)
            to_columns += times_table(gradient.T, rows[part].T / temperature)
        ctx.save_for_backward(to_rows, to_columns)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        to_rows, to_columns = ctx.saved_tensors
        return gradient * to_rows, gradient * to_columns, *[None] * 4


def _of_some_rows(similarity: Tensor, no_rival: Tensor, positive_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``r`` and their gradient for the similarities, ``r m``."""
    negative = hide(similarity, no_rival)
    rivals = negative.logsumexp(1, keepdim=True)
    losses = (against(similarity, rivals) * positive_weight).sum(1)
    pull = torch.sigmoid(rivals - similarity) * positive_weight
    return losses, (negative - rivals).exp_().mul_(pull.sum(1, keepdim=True)).sub_(pull)
