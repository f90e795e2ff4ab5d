"""The progress bar of a training counted in steps: loss, mIoU and images per second."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

_SHOWN = {"train/loss": "loss", "val/mIoU": "mIoU", "train/images_per_s": "images/s"}


class ProgressBar(RichProgressBar):
    """Lightning's rich bar without epochs, of which a training by steps has but one."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {short: shown[name] for name, short in _SHOWN.items() if name in shown}
