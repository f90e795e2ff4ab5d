"""The cosines in full, as the plain formulas have them."""

from __future__ import annotations

import torch
from torch import Tensor

from protoseg.functional.similarity import DenseSimilarities
from protoseg.types import Similarities


def plain(embeddings: Tensor, prototypes: Tensor) -> DenseSimilarities:
    """Of ``n d`` and ``c k d``."""
    return DenseSimilarities(torch.einsum("nd,ckd->nck", embeddings, prototypes))


def dense(cosines: Similarities | None) -> Tensor:
    """All that can be read, ``n c k``, without gradient."""
    assert cosines is not None
    c, k, n = cosines.num_classes, cosines.num_prototypes, len(cosines.scores)
    with torch.no_grad():
        columns = [cosines.at(torch.full((n,), number)) for number in range(c * k)]
    return torch.stack(columns, 1).view(n, c, k)
