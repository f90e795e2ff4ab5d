"""Supervised prototype segmentation (ProtoSeg, CVPR 2022, arXiv 2203.15102) and its softmax twin."""

from typing import Any

from protoseg.losses import Step
from protoseg.training.base import SegmentationModule
from protoseg.types import Batch


class SupervisedModule(SegmentationModule):
    """Cross-entropy plus, for a head with prototypes, PPC and PPD on its online clustering; and a pixel contrast."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        seen, observations = self.see(batch.image, batch.label)
        step = Step(self.model, seen)
        loss, values = self.sum_terms(self.losses, step)
        if self.terms:
            more, of_terms = self.sum_terms(self.terms, step)
            loss, values = loss + more, values | of_terms
            observations += [o for term in self.terms.values() for o in term.observations]
        return self.step_output(loss, values, batch.name, observations)
