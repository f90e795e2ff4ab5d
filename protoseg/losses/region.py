"""Region mutual information: a pixel is judged together with its neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.types import IGNORE_INDEX

POOL, SIDE = 4, 3  # pixels a side of a cell, and cells a side of a region
NOISE = 5e-4  # variance added to every cell


class RegionMutualInformation(nn.Module):
    """RMI (Zhao et al., NeurIPS 2019, arXiv 1910.12037): the lower bound that stands beside cross-entropy (Eq. 16).

    The labels of a class in a region are a vector, and so are its probabilities. With M the labels' covariance that the
    probabilities do not explain, the loss is ½ log det M / ``SIDE``², counted from its least value (of a class that an
    image lacks; where probabilities are labels at most ½ log 2), summed over classes, the mean over images. Of softmax,
    where the released code has sigmoids; covariances are means, not sums, so that fp32 can add the noise to them.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of ``b c H W`` and int64 ``b H W``, of at least ``SIDE`` cells each way, a scalar in fp32 or better."""
        with no_autocast(logits):
            valid = (label != IGNORE_INDEX).unsqueeze(1)
            probability = at_least_fp32(logits).softmax(1) * valid
            truth = F.one_hot(label.clamp_min(0), logits.shape[1]).movedim(3, 1).to(probability) * valid
            p, y = _regions(probability), _regions(truth)
            noise, n = NOISE * torch.eye(SIDE**2).to(p), p.shape[3]
            both, of_p = y @ p.mT / n, torch.linalg.cholesky(p @ p.mT / n + noise)
            unexplained = y @ y.mT / n - both @ torch.cholesky_solve(both.mT, of_p) + noise
            deviation = torch.linalg.cholesky(unexplained).diagonal(dim1=2, dim2=3)
            return (deviation / NOISE**0.5).log().sum(2).mean(0).sum() / SIDE**2


def _regions(maps: Tensor) -> Tensor:
    """The cells of every region, less their mean: ``b c H W`` to ``b c SIDE² n``."""
    cells = F.avg_pool2d(maps, POOL, ceil_mode=True)
    vectors = F.unfold(cells.flatten(0, 1).unsqueeze(1), SIDE).unflatten(0, cells.shape[:2])
    return vectors - vectors.mean(3, keepdim=True)
