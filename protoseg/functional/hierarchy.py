"""A tree over the classes (HSSN: Li et al., CVPR 2022, arXiv 2203.14335): ``v`` nodes, see ``LabelSpace.parents``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.types import IGNORE_INDEX


def ancestors(parents: Sequence[int]) -> Tensor:
    """Which nodes are each node itself or above it, fp64 ``v v`` of 0 and 1; the sums of rows are the nodes' depths."""
    above = torch.eye(len(parents), dtype=torch.float64)
    for node, parent in reversed([*enumerate(parents)]):  # groups before their members
        above[node] += above[parent] if parent >= 0 else 0
    return above


def lines(node: Tensor, parents: Sequence[int]) -> Tensor:
    """Nodes, int64 ``n``, then their groups, the groups of these, … (``IGNORE_INDEX`` above the top): ``levels n``."""
    if not parents:
        return node.unsqueeze(0)  # without a copy to the device in every step
    up, found, groups = torch.tensor([*parents, IGNORE_INDEX], device=node.device), [node], {*parents} - {-1}
    while groups:
        found.append(up[found[-1]])
        groups = {parents[group] for group in groups} - {-1}
    return torch.stack(found)


def tree_min(logits: Tensor, label: Tensor, parents: Sequence[int], gamma: float = 2.0) -> Tensor:
    """Focal tree-min loss: binary focal losses, summed over nodes, of sigmoids that are made to fit the tree.

    A node that a pixel is of has the least score on its way to the top, any other the highest of itself and those below
    it. Of logits ``b v h w`` and nodes, int64 ``b h w``, to ``b h w``. What is below the label, a group, is not known.
    """
    above, high = ancestors(parents), [*logits.unbind(1)]
    for group in sorted({*parents} - {-1}):  # those within others first
        high[group] = torch.stack([high[i] for i, p in enumerate(parents) if group in (i, p)]).max(0).values
    line = lines(label.flatten(), parents).flip(0).unflatten(1, label.shape).movedim(0, 1)  # from the top
    low = logits.gather(1, line.clamp_min(0)).masked_fill(line < 0, 1e4).cummin(1).values.unbind(1)
    wrong = [*(-each for each in low), *high]  # as logits, for sigmoid is monotone
    counts = [1.0] * len(low) + [other[label] for other in (above + above.T == 0).to(logits)]
    losses = [F.softplus(x) * x.sigmoid().clamp_min(1e-6) ** gamma * n for x, n in zip(wrong, counts, strict=True)]
    return sum(losses[1:], losses[0])


def path_scores(parents: Sequence[int], fall_back: float | None = None) -> Tensor:
    """Weights of log-sigmoids and, last, biases that make the score of the path to each node, their sum, ``v v+1``.

    (HSSN adds sigmoids; by softmax this is a path's share in all.) Paths are equally long: a class of a higher level
    counts for those below, too. A group ends a path as if what is below had the score ``fall_back``; None: never.
    """
    above = ancestors(parents)
    group, missing = torch.isin(torch.arange(len(above)), torch.tensor(parents)), above.sum(1).amax() - above.sum(1)
    lower = torch.tensor(fall_back or 0.0).log().clamp_min(-1e4)  # finite: interpolation would make NaN of -inf
    weight, bias = above + torch.diag(missing.where(~group, 0)), (lower * missing).where(group, 0)
    return torch.cat([weight, bias.unsqueeze(1)], 1).float()
