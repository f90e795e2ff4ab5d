"""Pixel contrast as pure mathematics: draw a pixel to its class and away from others, in the forms of seven papers.

Shapes: ``n`` pixels, ``d`` channels, ``c`` classes, ``k`` prototypes and ``a`` anchors per class, ``m`` negatives.
Embeddings are unit vectors, so products are cosines. What is absent is masked: shapes are static, and nothing absent
gives NaN, in value or gradient. Means are over the pixels of all ranks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from protoseg.distributed import all_gather, all_reduce_, mean_over_ranks, rank
from protoseg.functional.precision import at_least_fp32, no_autocast, times_table
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


def info_nce(
    positive: Tensor, negative: Tensor, valid: Tensor, negative_valid: Tensor, temperature: float = 0.5
) -> Tensor:
    """-log(e^{p/t} / (e^{p/t} + sum over m of e^{n_m/t})): mean over classes present of the mean over their anchors.

    U2PL (Wang et al., CVPR 2022, arXiv 2203.03884; t = 0.5). Classes stand at their own row: the released code numbers
    the classes present anew, which mixes up their queues as soon as one is absent. An anchor without negatives gives 0,
    and so do no anchors on any rank. Cosines are ``c a`` to the positive, ``c a m`` to the negatives; ``valid`` and
    ``negative_valid`` say which anchors, ``c a``, and negatives, ``c a m`` or ``c 1 m``, exist.
    """
    positive, negative = at_least_fp32(positive) / temperature, at_least_fp32(negative) / temperature
    rivals = hide(negative, ~negative_valid).logsumexp(2)
    losses, count = against(positive, rivals), valid.sum(1)
    present = (all_reduce_(count.clone()) > 0).sum()
    return mean_over_ranks((losses * valid).sum(1), count).sum() / present.clamp_min(1)


def nearest_prototype(anchors: Tensor, prototypes: Tensor, placed: Tensor) -> Tensor:
    """Cosine of anchors ``c a d`` to the nearest prototype ``c k d`` of their class that is placed, ``c k``; else 0."""
    cosine = hide(anchors @ prototypes.transpose(1, 2), ~placed.unsqueeze(1))
    return cosine.amax(2).where(placed.any(1, keepdim=True), 0)


def surely_not(logits: Tensor, low: int, high: int) -> Tensor:
    """Classes that a pixel surely does not show: rank in the order of probabilities in [low, high), 0 the likeliest.

    ``n c`` to bool ``n c``. U2PL's r_l and r_h; ``low`` is at most the last rank, so that even two classes leave one.
    """
    position = logits.argsort(stable=True, dim=1, descending=True).argsort(1)
    return (position >= max(1, min(low, logits.shape[1] - 1))) & (position < high)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax over classes: ``n c`` to ``n``."""
    return torch.special.entr(at_least_fp32(logits).softmax(1)).sum(1)


def entropy_bounds(values: Tensor, valid: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Entropies that the lowest and the highest ``share`` in (0, 0.5] of all ranks' valid pixels ``n`` do not pass."""
    ordered = all_gather(values.where(valid, float("inf"))).sort().values
    last = (all_reduce_(valid.sum()) - 1).clamp_min(0)
    margin = (share * last).long()
    low, high = ordered.index_select(0, torch.stack([margin, last - margin])).unbind()
    return low, high


def supervised_contrast(
    anchors: Tensor,
    label: Tensor,
    keys: Tensor | None = None,
    key_label: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    """Every anchor against all other anchors (of all ranks) and against keys, by their labels.

    With s_ij the cosine over the temperature, P_i the others of anchor i's label, N_i those of another label and
    l_ij = -log(e^{s_ij} / (e^{s_ij} + sum over N_i of e^{s_ik})): mean over i of the sum over P_i of w_i w_j l_ij,
    divided by max(1, |P_i|). ContrastiveSeg (arXiv 2101.11939), Eq. 3; its released code divides by |P_i| alone, which
    is NaN for a class with one pixel. The similarities of all pairs never exist at once
    (:class:`protoseg.functional.contrast.PairLosses`).

    Anchors are ``n d``, ``keys``, which no gradient reaches, ``m d``, with labels int64 ``n`` and ``m``, of which
    ``IGNORE_INDEX`` is no class; ``weight`` is of the anchors, ``n``, 1 by default as of the keys. The temperature is
    0.07 in ContrastiveSeg, 1 in the released code of PGPC.
    """
    with no_autocast(anchors):
        anchors = at_least_fp32(anchors)
        weight = torch.ones_like(anchors[:, 0]) if weight is None else weight.to(anchors.dtype)
        columns, column_label, column_weight = all_gather(anchors), all_gather(label), all_gather(weight)
        if keys is not None and key_label is not None:
            columns = torch.cat([columns, keys.to(columns.dtype)])
            column_label = torch.cat([column_label, key_label])
            column_weight = torch.cat([column_weight, column_weight.new_ones(len(keys))])
        own = rank() * len(label) + torch.arange(len(label), device=label.device)
        total = PairLosses.apply(anchors, columns, (label, column_label), (weight, column_weight), own, temperature)
        return mean_over_ranks(total, (label != IGNORE_INDEX).sum())


def tree_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: Tensor, valid: Tensor) -> Tensor:
    """Mean over ``valid`` triplets of max(0, D(a, p) - D(a, n) + margin), D = (1 - cosine) / 2: ``n d``, and ``n``."""
    losses = F.relu((anchor * (negative - positive)).sum(1) / 2 + margin)
    return mean_over_ranks((losses * valid).sum(), valid.sum())


def cycle_association(source: Tensor, label: Tensor, target: Tensor, shown: Tensor) -> Tensor:
    """From a source pixel to its nearest target pixel, and on to the source pixel nearest to that: -log of the shares.

    PLCA (Kang et al., NeurIPS 2020, arXiv 2011.00147), on embeddings: mean over the source pixels whose way ends at
    their class. Target pixels are first averaged, half and half, with those like them. Unit embeddings ``b n d`` and
    ``b m d`` of pairs of images; of labels int64 ``b n`` and ``b m`` the latter say only which pixels are ignored.
    """
    known, here = ((x != IGNORE_INDEX).unsqueeze(1) for x in (label, shown))
    target = F.normalize(target + _standard_shares(target @ target.mT, here).exp() @ target, dim=2)
    cosine = source @ target.mT
    there, near = _standard_shares(cosine, here).max(2)
    back, home = _standard_shares(cosine.mT, known).max(2)
    closed = (label.gather(1, home).gather(1, near) == label) & known.squeeze(1) & here.any(2)
    return mean_over_ranks(-((there + back.gather(1, near)) * closed).sum(), closed.sum())


def _standard_shares(cosine: Tensor, valid: Tensor) -> Tensor:
    """Log-softmax over the valid columns of cosines that are given their mean 0 and deviation 1, without a gradient."""
    with torch.no_grad():
        count = valid.sum(2, keepdim=True)
        mean = (cosine * valid).sum(2, keepdim=True) / count.clamp_min(1)
        deviation = ((cosine - mean).square() * valid).sum(2, keepdim=True) / (count - 1).clamp_min(1)
    return hide((cosine - mean) / deviation.sqrt().clamp_min(1e-3), ~valid).log_softmax(2)


def pixel_to_pixel(
    features: Tensor, label: Tensor, weight: Tensor | None = None, temperature: float = 1, released_order: bool = False
) -> Tensor:
    """Contrast of every pixel of a batch with every other one; the released code of PGPC, which is CLUDA's.

    The released code (a) flattens features pixel by pixel, but labels image by image, so that with more than one image
    in the batch most features meet the label of another pixel; ours keeps them together; (b) takes the ignored label
    for a class; (c) leaves out pairs of a thing and a stuff pixel from the positives, of which there are none.

    Features are ``b d h w``, of any length; labels, int64, and weights, 1 by default, are ``b h w``; ``released_order``
    is (a) as released, for comparison with published figures.
    """
    rows = F.normalize(at_least_fp32(features), dim=1).permute((2, 3, 0, 1) if released_order else (0, 2, 3, 1))
    flat_weight = None if weight is None else weight.flatten()
    return supervised_contrast(rows.flatten(0, 2), label.flatten(), weight=flat_weight, temperature=temperature)


def class_mean_contrast(
    embeddings: Tensor, label: Tensor, means: Tensor, placed: Tensor, temperature: float = 100.0
) -> Tensor:
    """Cross-entropy of each pixel's cosines to the class means over the temperature, its label as the target.

    SePiCo (Xie et al., TPAMI 2023, arXiv 2204.08808), its prototypical variant, with temperature 100 as released. Of
    embeddings ``n d``, labels int64 ``n`` and means ``c d``; classes not ``placed``, ``c``, are left out.
    """
    known = _has_mean(label, placed)
    logits = _mean_logits(embeddings, means, placed, temperature)
    total = F.cross_entropy(logits, label.where(known, IGNORE_INDEX), ignore_index=IGNORE_INDEX, reduction="sum")
    return mean_over_ranks(total, known.sum())


def mean_feature_uniformity(
    embeddings: Tensor, label: Tensor, means: Tensor, placed: Tensor, temperature: float = 100.0
) -> Tensor:
    """Cross-entropy of the uniform distribution and the mean embedding's softmax over classes, over log c: at least 1.

    SePiCo's regularisation: keeps the mean feature amid the classes. The released code adds the same sum of logarithms
    with the other sign, which is lowest where the mean feature sits on one class; ours is lowest where its softmax is
    uniform. Arguments as in :func:`class_mean_contrast`.
    """
    known = _has_mean(label, placed)
    sums = all_gather((at_least_fp32(embeddings) * known.unsqueeze(1)).sum(0, keepdim=True)).sum(0, keepdim=True)
    count = all_reduce_(known.sum())
    mean = sums / count.clamp_min(1)
    log_share = _mean_logits(mean, means, placed, temperature).log_softmax(1).squeeze(0)
    classes = placed.sum().clamp_min(1).to(log_share.dtype)
    value = -(log_share * placed).sum() / (classes * classes.log()).clamp_min(1e-6)
    return value * ((count > 0) & (classes > 1))


def _has_mean(label: Tensor, placed: Tensor) -> Tensor:
    valid = label != IGNORE_INDEX
    return valid & placed[label.where(valid, 0)]


def _mean_logits(embeddings: Tensor, means: Tensor, placed: Tensor, temperature: float) -> Tensor:
    with no_autocast(embeddings):
        embeddings = at_least_fp32(embeddings)
        return hide(embeddings @ means.to(embeddings.dtype).T / temperature, ~placed)
