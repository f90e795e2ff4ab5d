"""The prototypes of one class from all its pixels at once: the online clustering, repeated until nothing moves."""

from typing import NamedTuple

import torch
from torch import Tensor

from protoseg.functional.prototypes import prototype_sums, sinkhorn, update_prototypes
from protoseg.types import ProtosegError

MAX_ITERATIONS = 100


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
