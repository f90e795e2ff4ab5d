"""What a training says of itself: loggers, one way to hand them pictures and tables, the bar, speed, prototypes."""

import math
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from protoseg.functional.prototypes import within_class_cosine
from protoseg.nn import PrototypeMemory
from protoseg.text import markdown_table, say, visible
from protoseg.types import AdaptationBatch, ProtosegError, require


class StepLog(CSVLogger):
    """Lightning's CSV log with one row a step: what is logged later at the same step joins its row."""

    _step: int | None = None
    _row: Mapping[str, Any] = MappingProxyType({})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        if step is not None and step == self._step:
            metrics = {**self._row, **metrics}
            with open(self.experiment.metrics_file_path, "r+b") as file:
                end = max(0, file.seek(0, os.SEEK_END) - 2**20)  # a row is shorter
                file.seek(end)
                file.truncate(end + file.read().rstrip().rfind(b"\n") + 1)
        self._step, self._row = step, metrics
        super().log_metrics(dict(metrics), step)


class _BestCheckpointLogger(WandbLogger):
    """Uploads the best checkpoint alone: Lightning's also sends the last, which is there to resume from."""

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        if checkpoint_callback.monitor is not None:
            super().after_save_checkpoint(checkpoint_callback)


def wandb_logger(project: str = "protoseg", log_model: bool | str = False, **kwargs: Any) -> Logger:
    """Weights & Biases; offline where no key is configured (``wandb sync`` uploads such a run later).

    ``log_model`` keeps the best checkpoint as an artefact: True at the end of the run, ``"all"`` whenever there is a
    better one; a ProtosegError if it is anything else, or the run offline. The rest is Lightning's ``WandbLogger``'s.
    """
    require("wandb", "wandb")
    from requests.utils import get_netrc_auth  # type: ignore[import-untyped]  # which wandb needs, too

    if log_model not in (True, False, "all"):
        raise ProtosegError(f"logger.wandb.log_model: expected true, false or all, got {log_model!r}")
    has_key = os.environ.get("WANDB_API_KEY") or get_netrc_auth("https://api.wandb.ai")
    offline = os.environ.get("WANDB_MODE", "") == "offline" or not has_key
    if offline and log_model:
        text = f"logger.wandb.log_model: expected false for a run that cannot upload, as it is offline, got {log_model}"
        raise ProtosegError(f"{text}; run `wandb login` (or unset WANDB_MODE), or set logger.wandb.log_model=false")
    logger = _BestCheckpointLogger(project=project, offline=offline, log_model=cast(Any, log_model), **kwargs)
    logger._wandb_init.pop("anonymous", None)  # Lightning hands it on, and wandb warns that it has no effect
    return logger


def finish_wandb(failed: bool = False) -> None:
    """End the run, if there is one: Lightning leaves it open, and a sweep's next job would write into it."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(failed))


def _step(trainer: pl.Trainer) -> int:
    return max(0, trainer.global_step - 1)  # as Lightning counts for scalars, from 0


def log_picture(trainer: pl.Trainer, key: str, picture: np.ndarray) -> None:
    """Send an RGB uint8 picture ``h w 3`` to wandb and TensorBoard, where they are in use."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, _step(trainer), dataformats="HWC")


def prepare_charts(trainer: pl.Trainer) -> None:
    """Let TensorBoard show the IoU of all classes in one chart ("Custom scalars"), wandb the best mIoU of a run."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, WandbLogger):
            logger.experiment.define_metric("val/mIoU", step_metric="trainer/global_step", summary="max")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"validation": {"IoU by class": ["Multiline", ["val/IoU/.*"]]}})


def log_table(trainer: pl.Trainer, key: str, columns: list[str], rows: list[list[Any]], text: bool = True) -> None:
    """Send a table to wandb (as a table) and, with ``text``, to TensorBoard (as Markdown)."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            shown = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
            logger.log_table(key, columns=columns, data=shown, step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger) and text:
            logger.experiment.add_text(key, markdown_table(columns, rows), _step(trainer))


def log_score(trainer: pl.Trainer, config: Mapping[str, Any] | None, score: float) -> None:
    """Let TensorBoard show the settings beside the run's best score, under "HPARAMS"."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and math.isfinite(score):  # NaN: nothing was validated
            logger.log_hyperparams(dict(config or {}), {"val/best_mIoU": score}, trainer.global_step)
            logger.finalize("success")  # fit has closed it before


class ProgressBar(RichProgressBar):
    """Lightning's rich bar without epochs, of which a training by steps has but one."""

    @property
    def total_train_batches(self) -> int:
        """Of the whole training, as the count that is shown: of one that goes on and with accumulation, too."""
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        names = {"train/loss": "loss", "val/mIoU": "mIoU", "train/images_per_s": "images/s"}
        return {short: shown[name] for name, short in names.items() if name in shown}


class Throughput(pl.Callback):
    """Logs ``train/images_per_s`` (all ranks, loading too, validation not; over about 10 steps); says once the cost."""

    _tell_at = 0
    _last: float | None = None
    _seconds_per_image: float | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._last is not None:
            parts = (batch.source, batch.target) if isinstance(batch, AdaptationBatch) else (batch,)
            images = sum(len(part.image) for part in parts) * trainer.world_size
            latest = (now - self._last) / images
            old = self._seconds_per_image
            self._seconds_per_image = latest if old is None else 0.9 * old + 0.1 * latest
            pl_module.log("train/images_per_s", 1 / self._seconds_per_image, prog_bar=True)
            if trainer.global_step == self._tell_at < trainer.max_steps:
                self._tell_at = 0  # once
                self._tell_cost(trainer, self._seconds_per_image * images * trainer.accumulate_grad_batches)
        self._last = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell_at = trainer.global_step + 10

    def _tell_cost(self, trainer: pl.Trainer, seconds: float) -> None:
        left = timedelta(seconds=round(seconds * (trainer.max_steps - trainer.global_step)))
        memory = ""
        if torch.cuda.is_available():
            memory = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of memory of the GPU so far"
        elif sys.platform == "linux":
            import resource  # Windows has none

            memory = f", {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of memory so far"
        rank_zero_only(say)(f"{1 / seconds:.2f} steps/s, {left} left without validations{memory}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = None


class PrototypeMemoryCallback(pl.Callback):
    """Logs the statistics of every memory of the module, which brings it: no override of the callbacks can lose it."""

    _stepped = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for memory in pl_module.modules():  # a teacher's too
            if isinstance(memory, PrototypeMemory):
                memory.cared_for = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stepped = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._stepped:
            return  # still accumulating gradients
        self._stepped = trainer.global_step
        if self._stepped % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for name, memory in pl_module.memories.items():
                pl_module.log_dict({f"{name}/{key}": value for key, value in memory_statistics(memory).items()})


@torch.no_grad()
def memory_statistics(memory: PrototypeMemory) -> dict[str, Tensor]:
    """Scalars for the logs: ``moved`` is the share of prototypes that got at least one pixel in this step.

    ``diversity``: mean pairwise cosine within a class (1: all K are one; lower is more diverse).
    ``balance``: entropy of the occupancy within a class over log K, mean over the classes seen.
    """
    total = memory.occupancy.sum(1, keepdim=True)
    statistics = {"moved": (memory.occupancy > 0).float().mean()}
    if (k := memory.occupancy.shape[1]) > 1:
        entropy = torch.special.entr(memory.occupancy / total.clamp_min(1)).sum()  # 0 of a class that was not seen
        statistics["diversity"] = within_class_cosine(memory.prototypes).mean()
        statistics["balance"] = entropy / (total > 0).sum().clamp_min(1) / torch.tensor(k).log()
    return statistics
