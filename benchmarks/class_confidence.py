"""Adaptation whose pseudo-labels are sure by class: ``method._target_=benchmarks.class_confidence.ClassConfidence``.

The teacher's confidence becomes that of :func:`protoseg.functional.discriminant.class_calibration`, fitted while
training on labelled source images, so that one threshold is another of its softmax for each class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from protoseg.functional.discriminant import class_calibration
from protoseg.functional.resize import downsample_label
from protoseg.losses import Target
from protoseg.training.adaptation import AdaptationModule
from protoseg.types import IGNORE_INDEX, AdaptationBatch, Batch

EVERY = 25  # steps between two fits
MOMENTUM = 0.5  # of slope and biases


class ClassConfidence(AdaptationModule):
    """See above; all else is as in the base."""

    slope: Tensor
    bias: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("bias", torch.zeros(self.label_space.num_classes))

    def training_step(self, batch: AdaptationBatch, batch_idx: int) -> dict[str, Any]:
        if batch_idx % EVERY == 0:
            self.fit(batch.source)
        return super().training_step(batch, batch_idx)

    @torch.no_grad()
    def fit(self, source: Batch) -> None:
        """On what the teacher says of labelled images."""
        logits = self._without_weights(self.teacher(source.image).logits.float())
        size = (logits.shape[2], logits.shape[3])
        label = downsample_label(source.label, size, self.model.stride).flatten()
        (best, predicted), rows = logits.max(1), logits.permute(0, 2, 3, 1).flatten(0, 2)
        rest = rows.scatter(1, predicted.flatten()[:, None], -torch.inf).logsumexp(1)
        known = label != IGNORE_INDEX
        said = ((best.flatten() - rest)[known], predicted.flatten()[known])
        with torch.enable_grad():
            slope, bias = class_calibration(*said, said[1] == label[known], logits.shape[1])
        self.slope.lerp_(slope.to(self.slope), 1 - MOMENTUM)
        self.bias.lerp_(bias.to(self.bias), 1 - MOMENTUM)

    def ask_teacher(self, image: Tensor) -> Target:
        said = super().ask_teacher(image)
        ids = said.label.clamp_min(0)  # rows that are left out have none
        confidence = (self.slope * said.confidence.logit(1e-7) + self.bias[ids]).sigmoid()
        sure = (confidence >= self.threshold).to(confidence.dtype).mean()
        return replace(said, confidence=confidence, quality=sure)
