"""Classes as mixtures of Gaussians: the generative sibling of prototypes.

GMMSeg (Liang et al., NeurIPS 2022, arXiv 2210.02025). A pixel embedding x of class c has the density

    p(x | c) = sum over k of pi_ck N(x; mu_ck, diag Sigma_ck),

and its logarithm is the class's logit. The network learns by the cross-entropy of these logits; the Gaussians learn by
one momentum step of Sinkhorn EM per optimizer step, and no gradient reaches them.

Three choices are ours: x and mu have unit length, as ProtoSeg's; EM sees the pixels of one step of all ranks, not a
queue of earlier ones; the momentum warms up, as that of prototypes does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.distributed import all_reduce_
from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.prototypes import Clustering, sinkhorn
from protoseg.functional.similarity import DenseSimilarities
from protoseg.nn import Head
from protoseg.nn.heads import projection
from protoseg.nn.prototype_memory import Observation, PrototypeMemory
from protoseg.types import IGNORE_INDEX, ProtosegError, SegOutput


class GaussianMixtureHead(Head):
    """Class logits log p(x | c).

    Args:
        in_channels: channels of the decoder's map.
        num_classes: c.
        num_components: k, Gaussians per class.
        embedding_dim: d, length of x.
        memory: of :class:`GaussianMixtures`: momentum, momentum_warmup, rounds, min_variance.
    """

    memory: GaussianMixtures

    def __init__(
        self, in_channels: int, num_classes: int, num_components: int = 5, embedding_dim: int = 64, **memory: Any
    ) -> None:
        super().__init__(num_classes, embedding_dim)
        self.projection = projection(in_channels, embedding_dim)
        self.norm = nn.LayerNorm(embedding_dim)
        self.memory = GaussianMixtures(num_classes, num_components, embedding_dim, **memory)

    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w``, unit embeddings ``b d h w`` and cosines to the means."""
        projected = self.projection(features)
        b, _, h, w = projected.shape
        with no_autocast(projected):
            pixels = at_least_fp32(projected).permute(0, 2, 3, 1).flatten(0, 2)
            x = F.normalize(self.norm(pixels), dim=1)
            logits = self.memory.log_joint(x).logsumexp(2)
        return SegOutput(
            logits=logits.view(b, h, w, -1).permute(0, 3, 1, 2),
            embeddings=x.view(b, h, w, -1).permute(0, 3, 1, 2),
            similarities=self.memory.similarity(x),
        )


class GaussianMixtures(PrototypeMemory):
    """K Gaussians per class, moved by their class's labelled pixels.

    Sinkhorn EM gives every component the same share of its class, hence pi_ck = 1 / K throughout.

    Args:
        num_classes, num_components, dim: ``c``, ``k`` and ``d``.
        momentum, momentum_warmup: of means and variances, as of prototypes.
        rounds: of Sinkhorn.
        min_variance: of each channel; unit vectors have 1 / d of it, if they are spread evenly.

    Attributes:
        prototypes: the means mu, ``c k d``.
        variances: the diagonals of Sigma, ``c k d``.
    """

    variances: Tensor
    pending_squares: Tensor

    def __init__(
        self,
        num_classes: int,
        num_components: int,
        dim: int,
        momentum: float = 0.999,
        momentum_warmup: int = 10,
        rounds: int = 3,
        min_variance: float = 1e-3,
    ) -> None:
        super().__init__(num_classes, num_components, dim, momentum, momentum_warmup, epsilon=1.0, rounds=rounds)
        if min_variance <= 0:
            raise ProtosegError(f"Gaussian mixture head: expected min_variance > 0, got {min_variance}")
        self.min_variance = min_variance
        self.register_buffer("variances", torch.full_like(self.prototypes, 1 / dim))
        self.register_buffer("pending_squares", torch.zeros_like(self.pending_sums), persistent=False)

    def log_joint(self, x: Tensor) -> Tensor:
        """log pi_ck N(x; mu_ck, Sigma_ck) of ``n d``, as ``n c k``: two matrix products."""
        c, k, d = self.prototypes.shape
        mean, precision = self.prototypes.flatten(0, 1), 1 / self.variances.flatten(0, 1)
        distance = x.square() @ precision.T - 2 * x @ (precision * mean).T + (precision * mean.square()).sum(1)
        volume = d * math.log(2 * math.pi) - precision.log().sum(1)
        return (-0.5 * (distance + volume) - math.log(k)).view(-1, c, k)

    def own_scores(self, output: SegOutput, label: Tensor) -> Tensor:
        """:meth:`log_joint` of the pixels' own class, ``n k``."""
        x = output.embeddings.permute(0, 2, 3, 1).flatten(0, 2)
        return DenseSimilarities(self.log_joint(x)).own(label)

    def balance(self, own: Tensor, label: Tensor) -> Clustering:
        return super().balance(_log_posterior(own), label)

    def responsibilities(self, own: Tensor, label: Tensor) -> Tensor:
        """E step: posteriors ``n k``, from labels ``n`` and log joints ``n k``, balanced: columns are alike."""
        classes = len(self.prototypes)
        return sinkhorn(_log_posterior(own), label, classes, label != IGNORE_INDEX, self.epsilon, self.rounds)

    @torch.no_grad()
    def observe_accumulated(self, parts: Sequence[Observation]) -> None:
        """Add the pixels of one optimizer step to the sums of the M step: of 1, x and x², by responsibility."""
        x, own, label = (torch.cat([getattr(part, name) for part in parts]) for name in ("embeddings", "own", "label"))
        classes, k, d = self.prototypes.shape
        share = self.responsibilities(own, label).to(x.dtype)
        label = label.where(label != IGNORE_INDEX, 0)  # of share 0
        self.pending_counts.view(classes, k).index_add_(0, label, share)
        for j in range(k):  # never n k d numbers at once
            weighted = share[:, j : j + 1] * x
            self.pending_sums.view(classes, k, d)[:, j].index_add_(0, label, weighted)
            self.pending_squares.view(classes, k, d)[:, j].index_add_(0, label, weighted * x)

    def move(self, sums: Tensor, counts: Tensor, momentum: Tensor) -> None:
        """M step, at a momentum: the means, then the variances about them."""
        super().move(sums, counts, momentum)
        squares = all_reduce_(self.pending_squares)
        mean, variance = self.prototypes.flatten(0, 1), self.variances.flatten(0, 1)
        counts, momentum = counts.unsqueeze(1), momentum.unsqueeze(1)
        new = (squares - 2 * mean * sums) / counts.where(counts > 0, 1) + mean.square()
        moved = torch.lerp(new.clamp_min(self.min_variance), variance, momentum)
        variance.copy_(moved.where(counts > 0, variance))

    def forget(self) -> None:
        super().forget()
        self.pending_squares.zero_()


def _log_posterior(own: Tensor) -> Tensor:
    """log p(k | x, c) from log joints ``n k``, plus 1, of which Sinkhorn takes 1 off; none rounds to nothing in exp."""
    return own.double().log_softmax(1).clamp_min(-600) + 1
