"""Balanced assignment of pixels to the prototypes of their own class, all classes at once."""

import torch
from torch import Tensor

from protoseg.distributed import all_reduce_
from protoseg.functional.precision import at_least_fp32


@torch.no_grad()
def sinkhorn(
    similarity: Tensor,
    label: Tensor,
    num_classes: int,
    valid: Tensor | None = None,
    epsilon: float = 0.05,
    rounds: int = 3,
) -> Tensor:
    """Sinkhorn-Knopp within every class: each pixel spreads one unit, each prototype of a class gets an equal share.

    ProtoSeg (arXiv 2203.15102), Eq. 8 to 10. The column sums of every round are summed over ranks, so R ranks
    give the plan of one process on the concatenated batch.

    Args:
        similarity: cosine of each pixel to the K prototypes of its own class, ``n k``.
        label: class of each pixel, int64 ``n`` in [0, num_classes); anything where ``valid`` is False.
        num_classes: the cost does not depend on it beyond one ``c k`` table.
        valid: pixels that take part, bool ``n``; all by default.
        epsilon: entropy weight; smaller is sharper.
        rounds: of normalisation.

    Returns:
        The plan, ``n k``; rows of valid pixels sum to 1, the others are 0. fp32, or fp64 for fp64 input.
    """
    similarity = at_least_fp32(similarity)
    # Cosines are at most 1; the shift keeps exp in range (exp(1 / 0.05) overflows fp16) and cancels in the plan.
    plan = ((similarity - 1) / epsilon).exp()
    if valid is not None:
        label = label.where(valid, 0)
        plan = plan * valid.unsqueeze(1)
    tiny = torch.finfo(plan.dtype).tiny
    for _ in range(rounds):
        share = all_reduce_(plan.new_zeros(num_classes, plan.shape[1]).index_add_(0, label, plan))
        plan = plan / share[label].clamp_min(tiny)
        plan = plan / plan.sum(1, keepdim=True).clamp_min(tiny)
    return plan
