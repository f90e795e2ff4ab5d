"""Images per second on the progress bar and in the logs."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl

from protoseg.types import AdaptationBatch, Batch


class Throughput(pl.Callback):
    """Logs ``train/images_per_s``: all ranks, loading included, validation left out; smoothed over about 10 steps."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds_per_image: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._last is not None:
            latest = (now - self._last) / (number_of_images(batch) * trainer.world_size)
            old = self._seconds_per_image
            self._seconds_per_image = latest if old is None else 0.9 * old + 0.1 * latest
            pl_module.log("train/images_per_s", 1 / self._seconds_per_image, prog_bar=True)
        self._last = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = None


def number_of_images(batch: Batch | AdaptationBatch) -> int:
    """Images of a training batch, source and target alike."""
    if isinstance(batch, AdaptationBatch):
        return len(batch.source.image) + len(batch.target.image)
    return len(batch.image)
