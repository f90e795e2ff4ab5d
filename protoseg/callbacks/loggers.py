"""Loggers as users expect them, and one way to hand pictures and tables to whichever logger is there."""

import math
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from protoseg.text import markdown_table, visible
from protoseg.types import ProtosegError


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
    from requests.utils import get_netrc_auth  # type: ignore[import-untyped]  # which wandb needs, too

    if log_model not in (True, False, "all"):
        raise ProtosegError(f"logger.wandb.log_model: expected true, false or all, got {log_model!r}")
    has_key = os.environ.get("WANDB_API_KEY") or get_netrc_auth("https://api.wandb.ai")
    offline = os.environ.get("WANDB_MODE", "") == "offline" or not has_key
    if offline and log_model:
        raise ProtosegError(
            f"logger.wandb.log_model: expected false for a run that is offline, got {log_model}: checkpoints cannot be "
            "uploaded then; run `wandb login` (or unset WANDB_MODE), or set logger.wandb.log_model=false"
        )
    options: dict[str, Any] = {"log_model": log_model, **kwargs}
    logger = _BestCheckpointLogger(project=project, offline=offline, **options)
    logger._wandb_init.pop("anonymous", None)  # Lightning hands it on, and wandb warns that it has no effect
    return logger


def finish_wandb(failed: bool = False) -> None:
    """End the run, if there is one: Lightning leaves it open, and a sweep's next job would write into it."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(failed))


def _step(trainer: Trainer) -> int:
    return max(0, trainer.global_step - 1)  # as Lightning counts for scalars, from 0


def log_picture(trainer: Trainer, key: str, picture: np.ndarray) -> None:
    """Send an RGB uint8 picture ``h w 3`` to wandb and TensorBoard, where they are in use."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, _step(trainer), dataformats="HWC")


def prepare_charts(trainer: Trainer) -> None:
    """Let TensorBoard show the IoU of all classes in one chart ("Custom scalars"), wandb the best mIoU of a run."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, WandbLogger):
            logger.experiment.define_metric("val/mIoU", step_metric="trainer/global_step", summary="max")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"validation": {"IoU by class": ["Multiline", ["val/IoU/.*"]]}})


def log_table(trainer: Trainer, key: str, columns: list[str], rows: list[list[Any]], text: bool = True) -> None:
    """Send a table to wandb (as a table) and, with ``text``, to TensorBoard (as Markdown)."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            shown = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
            logger.log_table(key, columns=columns, data=shown, step=_step(trainer))
        elif isinstance(logger, TensorBoardLogger) and text:
            logger.experiment.add_text(key, markdown_table(columns, rows), _step(trainer))


def log_score(trainer: Trainer, config: Mapping[str, Any] | None, score: float) -> None:
    """Let TensorBoard show the settings beside the run's best score, under "HPARAMS"."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and math.isfinite(score):  # NaN: nothing was validated
            logger.log_hyperparams(dict(config or {}), {"val/best_mIoU": score}, trainer.global_step)
            logger.finalize("success")  # fit has closed it before
