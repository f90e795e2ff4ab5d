"""Class prototypes as pure mathematics: nearest prototype, online clustering, momentum update, PPC and PPD.

Shapes: ``n`` pixels, ``d`` channels, ``c`` classes, ``k`` prototypes per class. Embeddings and prototypes are unit
vectors. Source of all formulas: ProtoSeg, CVPR 2022, arXiv 2203.15102; deviations are named where they happen.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.distributed import all_reduce_, mean_over_ranks
from protoseg.functional.precision import at_least_fp32
from protoseg.types import IGNORE_INDEX, ProtosegError, Similarities, check_choice

ASSIGNMENTS: tuple[str, ...] = ("argmax", "gumbel", "released")
MAX_ITERATIONS = 100


class Clustering(NamedTuple):
    """Which prototype each pixel belongs to, as flat index ``class * k + j``, int64 ``n``; ignored pixels carry -1."""

    target: Tensor  # that which it should be near: argmax of its row of the plan
    member: Tensor  # that which it is added to in the update; another only when the assignment is drawn at random


@torch.no_grad()
def cluster(
    own: Tensor, label: Tensor, num_classes: int, assignment: str = "argmax", epsilon: float = 0.05, rounds: int = 3
) -> Clustering:
    """Online clustering of labelled pixels into the K prototypes of their class (training only).

    Of labels int64 ``n`` and the cosines to the prototypes of each pixel's own class, ``n k``:
    ``Similarities.own(label)``; ``epsilon`` and ``rounds`` as of :func:`protoseg.functional.prototypes.sinkhorn`. The
    ``assignment`` makes a membership of the plan. ``argmax``: the most likely prototype (paper). ``gumbel``: a true
    sample (Gumbel noise on *log*-probabilities). ``released``: the public code's draw, the noise on *probabilities*,
    nearly uniform; only for comparison with published checkpoints. Raises ProtosegError: another one.
    """
    check_choice("assignment", assignment, ASSIGNMENTS)
    k, valid = own.shape[1], label != IGNORE_INDEX
    plan = sinkhorn(own, label, num_classes, valid, epsilon, rounds)
    chosen = drawn = plan.argmax(1)
    if assignment != "argmax":
        log_weight = plan.clamp_min(torch.finfo(plan.dtype).tiny).log() if assignment == "gumbel" else plan
        drawn = (log_weight - torch.empty_like(plan).exponential_().log()).argmax(1)
    offset = label * k
    return Clustering((offset + chosen).where(valid, -1), (offset + drawn).where(valid, -1))


@torch.no_grad()
def prototype_sums(embeddings: Tensor, member: Tensor, num_prototypes: int) -> tuple[Tensor, Tensor]:
    """Sum of embeddings and number of pixels per prototype, of this rank's pixels.

    From ``n d`` and the flat prototype index of each pixel, int64 ``n`` (-1 takes no part), to sums ``c*k d`` (fp32, or
    fp64 for fp64 input) and counts ``c*k``.
    """
    embeddings = at_least_fp32(embeddings)
    # One extra row swallows the pixels that take no part: no host synchronisation, static shapes.
    row = member.where(member >= 0, num_prototypes)
    sums = embeddings.new_zeros(num_prototypes + 1, embeddings.shape[1]).index_add_(0, row, embeddings)
    counts = embeddings.new_zeros(num_prototypes + 1).index_add_(0, row, torch.ones_like(row, dtype=embeddings.dtype))
    return sums[:-1], counts[:-1]


@torch.no_grad()
def update_prototypes(prototypes: Tensor, sums: Tensor, counts: Tensor, momentum: Tensor | float) -> Tensor:
    """Momentum update of ``m d``: p <- normalise(m * p + (1 - m) * normalise(sum)); prototypes with no pixel stay.

    Sums and counts as of :func:`prototype_sums`, summed over ranks; momentum in [0, 1], one or one per prototype.
    """
    momentum = torch.as_tensor(momentum, dtype=prototypes.dtype, device=prototypes.device).expand(len(prototypes))
    moved = torch.lerp(F.normalize(sums.to(prototypes.dtype), dim=1), prototypes, momentum.unsqueeze(1))
    return F.normalize(moved, dim=1).where((counts > 0).unsqueeze(1), prototypes)


def pixel_prototype_contrast(cosines: Similarities, target: Tensor, temperature: float = 0.1) -> Tensor:
    """PPC, Eq. 11: cross-entropy over all c*k cosines / temperature, the assigned prototype as the class.

    ``target`` is its flat index, ``n``; -1 is ignored. The released code has temperature 1, the paper 0.1. No labelled
    pixel gives 0 (with gradient 0).
    """
    valid = target >= 0
    losses = cosines.logsumexp(temperature) - cosines.at(target) / temperature
    return mean_over_ranks((losses * valid).sum(), valid.sum())


def pixel_prototype_distance(cosines: Similarities, target: Tensor) -> Tensor:
    """PPD, Eq. 12: mean of (1 - cosine to the assigned prototype)^2; arguments as in the contrast."""
    valid = target >= 0
    return mean_over_ranks(((1 - cosines.at(target)).square() * valid).sum(), valid.sum())


def within_class_cosine(prototypes: Tensor) -> Tensor:
    """Mean pairwise cosine of the K prototypes of each class, ``c k d`` to ``c``; NaN for K = 1."""
    k = prototypes.shape[1]
    gram = prototypes @ prototypes.transpose(1, 2)
    return (gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)) / (k * (k - 1) if k > 1 else float("nan"))


def nearest_class_cosine(prototypes: Tensor) -> Tensor:
    """Cosine of the two nearest prototypes of each pair of classes, ``c k d`` to ``c c``: high is easily confused.

    On the diagonal stands the mean within the class, as in :func:`within_class_cosine` (1 for K = 1).
    """
    c, k, d = prototypes.shape
    flat = prototypes.reshape(c * k, d)
    nearest = (flat @ flat.T).view(c, k, c, k).amax((1, 3))
    return nearest.diagonal_scatter(within_class_cosine(prototypes)).nan_to_num(1.0)


@torch.no_grad()
def sinkhorn(
    own: Tensor, label: Tensor, num_classes: int, valid: Tensor | None = None, epsilon: float = 0.05, rounds: int = 3
) -> Tensor:
    """Sinkhorn-Knopp within every class: each pixel spreads one unit, each prototype of a class gets an equal share.

    ProtoSeg (arXiv 2203.15102), Eq. 8 to 10. The column sums of every round are summed over ranks, so R ranks
    give the plan of one process on the concatenated batch.

    From the cosines of each pixel to the K prototypes of its own class, ``n k``, and that class, int64 ``n``, to the
    plan, ``n k``, fp32 or fp64 as its input. Rows of pixels that take part (``valid``, bool ``n``; all by default) sum
    to 1; the others are 0, their label may be anything. ``epsilon`` >= 0.003: smaller is sharper; ``rounds`` normalise.
    """
    if epsilon < 0.003:  # exp(-2 / epsilon) is 0 in fp64, too
        raise ProtosegError(f"sinkhorn: expected an epsilon of 0.003 or more, got {epsilon}; see head.epsilon")
    dtype = at_least_fp32(own).dtype
    # Cosines are at most 1; the shift keeps exp in range (exp(1 / 0.05) overflows fp16) and cancels in the plan.
    # Below 0.03 the shares of a far pixel would all be 0 in fp32.
    plan = ((own.to(torch.float64 if epsilon < 0.03 else dtype) - 1) / epsilon).exp()
    if valid is not None:
        label = label.where(valid, 0)
        plan = plan * valid.unsqueeze(1)
    tiny = torch.finfo(plan.dtype).tiny
    for _ in range(rounds):
        share = all_reduce_(plan.new_zeros(num_classes, plan.shape[1]).index_add_(0, label, plan))
        plan = plan / share[label].clamp_min(tiny)
        plan = plan / plan.sum(1, keepdim=True).clamp_min(tiny)
    return plan.to(dtype)


class ClassPrototypes(NamedTuple):
    """What :func:`class_prototypes` found."""

    prototypes: Tensor  # unit vectors, ``k d``
    counts: Tensor  # pixels that each stands for, int64 ``k``
    distinct: int  # how many of them differ: less than ``k`` where fewer pixels do; the others are copies


@torch.no_grad()
def class_prototypes(embeddings: Tensor, num_prototypes: int, seed: int = 0) -> ClassPrototypes:
    """K prototypes of one class by the rule of the prototype memory, without momentum.

    Pixels are assigned by balanced Sinkhorn-Knopp (ProtoSeg, arXiv 2203.15102, Eq. 8 to 10) and every prototype becomes
    the mean direction of its pixels, in turns, until no pixel changes its prototype (or ``MAX_ITERATIONS``). The start
    is spread out as in k-means++ (Arthur and Vassilvitskii, SODA 2007), with 1 - cosine as the squared distance.

    ``embeddings`` are the unit vectors of the class's pixels, ``n d``. Raises ProtosegError: no pixel.
    """
    if len(embeddings) == 0:
        raise ProtosegError("class prototypes: expected at least one pixel of the class, got none")
    prototypes = spread_out(embeddings, num_prototypes, seed)
    distinct = len(prototypes)
    one_class = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
    member = one_class - 1
    for _ in range(MAX_ITERATIONS):
        last, member = member, sinkhorn(embeddings @ prototypes.T, one_class, 1).argmax(1)
        if torch.equal(last, member):
            break
        prototypes = update_prototypes(prototypes, *prototype_sums(embeddings, member, distinct), momentum=0.0)
    counts = torch.bincount(member, minlength=distinct)
    copies = torch.arange(num_prototypes, device=embeddings.device) % distinct
    return ClassPrototypes(prototypes[copies], counts[copies], distinct)


def spread_out(embeddings: Tensor, count: int, seed: int) -> Tensor:
    """Pixels that lie far from one another, at most ``count`` and none twice: ``n d`` to ``m d``."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(embeddings), (), generator=generator))]
    distance = torch.full_like(embeddings[:, 0], torch.inf)
    tiny = 1e-6  # below it rounding is all that tells two cosines apart
    while len(chosen) < count:
        distance = torch.minimum(distance, 1 - embeddings @ embeddings[chosen[-1]])
        cumulative = distance.where(distance > tiny, 0).double().cumsum(0).cpu()
        if cumulative[-1] <= 0:
            break
        drawn = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
        chosen.append(int(torch.searchsorted(cumulative, drawn, right=True).clamp_max(len(embeddings) - 1)))
    return embeddings[chosen]
