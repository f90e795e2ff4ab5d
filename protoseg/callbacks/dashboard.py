"""Pictures and tables at every validation: predictions, per-class IoU, how prototypes are used and where they fire."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from protoseg.analysis.activations import activation_rows
from protoseg.analysis.embedding import embedding_plane, plane_picture
from protoseg.analysis.stream import look
from protoseg.analysis.structure import between_figure
from protoseg.callbacks.loggers import log_picture, log_table, prepare_charts
from protoseg.evaluation.pictures import adaptation_panel, figure_picture, heatmap_figure, panel
from protoseg.evaluation.predictor import Predictor, evaluating
from protoseg.files import write_file
from protoseg.lightning import batches_begun
from protoseg.text import visible
from protoseg.types import Batch


class Dashboard(pl.Callback):
    """Writes ``panels/{step,occupancy,similarity,…}_NNNNNN.png``, and sends the same to wandb and TensorBoard.

    ``activations`` and ``embedding`` show the validation set's first image every time; the panel ``num_images``, evenly
    spread. Of domain adaptation also ``panels/adaptation_NNNNNN.png``: what the last training step saw and thought.
    """

    def __init__(self, folder: str, num_images: int = 4) -> None:
        self.folder, self.num_images = Path(folder), num_images
        self._rows: list[np.ndarray] = []
        self._first: tuple[Tensor, Tensor] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        prepare_charts(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        picture = outputs.get("picture")
        batches = batches_begun(trainer)  # over resumes too
        if picture is None or batches % trainer.val_check_batch or not trainer.is_global_zero:  # type: ignore[operator]
            return
        image = picture["image"].unsqueeze(0)
        size = torch.tensor([image.shape[2:]])
        networks = (pl_module.model, pl_module.teacher.module)
        with evaluating(*networks):
            student, teacher = (Predictor().predict(model, image, size)[0].cpu() for model in networks)
        seen = {key: value.cpu() for key, value in picture.items()}
        drawn = adaptation_panel(seen, student, teacher, pl_module.label_space)
        self._show(trainer, "adaptation", "train/adaptation", drawn)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx:
            return  # the source domain's images
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        every = max(1, int(batches[0]) // self.num_images)
        if batch_idx % every == 0 and len(self._rows) < self.num_images and trainer.is_global_zero:
            height, width = batch.size[0].tolist()
            image, label = batch.image[0, :, :height, :width], batch.label[0, :height, :width]
            if batch_idx == 0:
                self._first = image, label
            self._rows.append(panel(image.cpu(), label.cpu(), outputs["predictions"][0].cpu(), pl_module.label_space))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        (rows, self._rows), (first, self._first) = (self._rows, []), (self._first, None)
        if trainer.sanity_checking or not trainer.is_global_zero or not rows:
            return
        width = max(row.shape[1] for row in rows)
        stacked = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
        self._show(trainer, "step", "val/predictions", np.concatenate(stacked))
        model, space = pl_module.model, pl_module.label_space
        classes, metrics = space.classes, trainer.callback_metrics
        ious = [[name, float(metrics.get(f"val/IoU/{visible(name)}", float("nan")))] for name in classes]
        log_table(trainer, "val/per_class_IoU", ["class", "IoU"], ious)
        memory = next(iter(pl_module.memories.values()), None)
        if memory is not None:
            share = memory.occupancy / memory.occupancy.sum(1, keepdim=True).clamp_min(1)
            title = "prototype occupancy: share of the class's pixels, last step"
            occupied = heatmap_figure(share.cpu().numpy(), classes, title)
            self._show(trainer, "occupancy", "prototypes/occupancy", occupied)
            alike = figure_picture(between_figure(memory.prototypes, space))
            self._show(trainer, "similarity", "prototypes/similarity", alike)
        if first is None or model.head.memory is None:  # a pixel contrast may have prototypes of its own
            return
        with torch.no_grad(), evaluating(model):
            scene = look(model, *first, shown=space.shown)
            self._show(trainer, "activations", "prototypes/activations", activation_rows(model, scene, space))
            plane = embedding_plane(model, scene)
        self._show(trainer, "embedding", "prototypes/embedding", plane_picture(plane, space))
        columns = ["kind", "class", "prototype", "x", "y"]
        log_table(trainer, "prototypes/embedding_table", columns, plane.rows(space), text=False)

    def _show(self, trainer: pl.Trainer, name: str, key: str, picture: np.ndarray) -> None:
        save = partial(Image.fromarray(picture).save, compress_level=1)  # 6, the default, takes three times as long
        write_file(self.folder / f"{name}_{trainer.global_step:06d}.png", save)
        log_picture(trainer, key, picture)
