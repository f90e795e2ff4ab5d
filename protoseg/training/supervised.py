"""Supervised prototype segmentation (ProtoSeg, CVPR 2022, arXiv 2203.15102) and its softmax twin."""

from __future__ import annotations

from typing import Any

from protoseg.losses import LossInput
from protoseg.training.base import SegmentationModule
from protoseg.types import Batch, SegOutput


class SupervisedModule(SegmentationModule):
    """Cross-entropy plus, for a head with prototypes, PPC and PPD on its online clustering."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        output: SegOutput = self(batch.image)
        clustering, observation = self.assign(output, batch.label)
        losses = LossInput(output, batch.label, self.model.stride, clustering)
        terms = {name: term(losses) for name, term in self.losses.items()}
        return {"loss": self.weighted_sum(terms, batch.name), "observation": observation}
