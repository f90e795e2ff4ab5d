"""Pixels of things that a network has no class for."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from protoseg.types import SegOutput

SIDE = 7  # cells; 5 to 15 were as good for cars on CamVid, 1 clearly worse (docs/results.md)


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
