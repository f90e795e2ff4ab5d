"""Pictures and tables at every validation: predictions, per-class IoU, and how the prototypes are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from protoseg.callbacks.loggers import log_picture, log_table
from protoseg.callbacks.prototype_memory import find_memory
from protoseg.types import Batch
from protoseg.visualize import heatmap_figure, panel


class Dashboard(pl.Callback):
    """Writes ``panels/step_NNNNNN.png`` and sends the same to wandb and TensorBoard where they are in use.

    Args:
        folder: where the pictures go.
        num_images: images of the validation set in the panel, evenly spread over it.
    """

    def __init__(self, folder: str, num_images: int = 4) -> None:
        self.folder, self.num_images = Path(folder), num_images
        self._rows: list[np.ndarray] = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        every = max(1, int(batches[dataloader_idx]) // self.num_images)
        if batch_idx % every == 0 and len(self._rows) < self.num_images and trainer.is_global_zero:
            height, width = batch.size[0].tolist()
            image, label = batch.image[0, :, :height, :width], batch.label[0, :height, :width]
            self._rows.append(panel(image.cpu(), label.cpu(), outputs["predictions"][0].cpu(), pl_module.label_space))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        rows, self._rows = self._rows, []
        if trainer.sanity_checking or not trainer.is_global_zero or not rows:
            return
        self._predictions(trainer, rows)
        self._table(trainer, pl_module)
        memory = find_memory(pl_module)
        if memory is not None:
            classes = pl_module.label_space.classes
            occupancy = memory.occupancy.cpu().numpy()
            share = occupancy / np.maximum(occupancy.sum(1, keepdims=True), 1)
            log_picture(
                trainer,
                "prototypes/occupancy",
                heatmap_figure(share, classes, "share of the class's pixels, last step"),
            )

    def _predictions(self, trainer: pl.Trainer, rows: list[np.ndarray]) -> None:
        from PIL import Image

        width = max(row.shape[1] for row in rows)
        picture = np.concatenate(
            [np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.folder / f"step_{trainer.global_step:06d}.png")
        log_picture(trainer, "val/predictions", picture)

    def _table(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        rows = [[name, float(metrics.get(f"val/IoU/{name}", float("nan")))] for name in pl_module.label_space.classes]
        log_table(trainer, "val/per_class_IoU", ["class", "IoU"], rows)
