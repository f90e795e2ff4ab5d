"""Lovász-Softmax (Berman, Rannen Triki and Blaschko, CVPR 2018, arXiv 1705.08790): a loss that follows the mIoU."""

from __future__ import annotations

import torch
from torch import Tensor

from protoseg.distributed import mean_over_ranks
from protoseg.functional.precision import at_least_fp32
from protoseg.functional.resize import upsample_logits
from protoseg.losses import Step, Term
from protoseg.types import IGNORE_INDEX


def jaccard_gradient(truth: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each error: ``n``, for truths (0 or 1) sorted by falling error, ``n``.

    The paper's Algorithm 1.
    """
    intersection = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def lovasz_softmax(probabilities: Tensor, label: Tensor) -> Tensor:
    """Mean over the classes present of the extended Jaccard loss: ``n c`` and labels ``n``, none ignored."""
    losses = []
    for i in label.unique():
        truth = (label == i).to(probabilities.dtype)
        error, order = (truth - probabilities[:, i]).abs().sort(descending=True)
        losses.append(error @ jaccard_gradient(truth[order]))
    return torch.stack(losses).mean()


class LovaszSoftmax(Term):
    """Lovász-Softmax of each labelled image, mean over the images of all ranks."""

    def forward(self, step: Step) -> Tensor:
        """A scalar from logits ``b c h w`` and labels ``b H W``."""
        seen = step.labelled
        logits = upsample_logits(at_least_fp32(seen.output.logits), seen.label.shape[1:], seen.stride)
        known = seen.label != IGNORE_INDEX
        losses = [
            lovasz_softmax(one[:, mask].softmax(0).T, label[mask])
            for one, label, mask in zip(logits, seen.label, known, strict=True)
            if mask.any()
        ]
        return mean_over_ranks(torch.stack([0 * logits.sum(), *losses]).sum(), logits.new_tensor(len(losses)))
