"""Supervised prototype segmentation (ProtoSeg, CVPR 2022, arXiv 2203.15102) and its softmax twin."""

from __future__ import annotations

from typing import Any

from protoseg.training.base import SegmentationModule
from protoseg.types import Batch


class SupervisedModule(SegmentationModule):
    """Cross-entropy plus, for a head with prototypes, PPC and PPD on its online clustering."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        seen, observations = self.see(batch.image, batch.label)
        terms = {name: term(seen) for name, term in self.losses.items()}
        return self.step_output(self.weighted_sum(terms, batch.name), observations)
