"""Supervised prototype segmentation (ProtoSeg, CVPR 2022, arXiv 2203.15102) and its softmax twin."""

import warnings
from typing import Any

import torch
from torch import Tensor

from protoseg.losses import Step
from protoseg.training.base import SegmentationModule
from protoseg.types import Batch


class SupervisedModule(SegmentationModule):
    """Cross-entropy plus, for a head with prototypes, PPC and PPD on its online clustering; and a pixel contrast."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """The whole loss of images ``b 3 h w`` (uint8, or float in [0, 1]) and int64 labels ``b h w``, -1 ignored.

        For a loop without a Trainer. After each step of its optimizer it calls ``after_optimizer_step()``.
        """
        size = torch.tensor([label.shape[1:]] * len(label))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*self.log.*")  # there is no Trainer to log to
            return self.training_step(Batch(image, label, size, []), 0)["loss"]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        seen, observations = self.see(batch.image, batch.label)
        step = Step(self.model, seen)
        loss, values = self.sum_terms(self.losses, step)
        if self.terms:
            more, of_terms = self.sum_terms(self.terms, step)
            loss, values = loss + more, values | of_terms
            observations += [o for term in self.terms.values() for o in term.observations]
        return self.step_output(loss, values, batch.name, observations)
