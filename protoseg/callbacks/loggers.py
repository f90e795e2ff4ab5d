"""Loggers as users expect them, and one way to hand pictures and tables to whichever logger is there."""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger


def wandb_logger(project: str = "protoseg", **kwargs: Any) -> Logger:
    """Weights & Biases; offline where no key is configured (``wandb sync`` uploads such a run later).

    Args:
        project, kwargs: of Lightning's ``WandbLogger`` (name, group, tags, save_dir, …).
    """
    offline = os.environ.get("WANDB_MODE", "") == "offline" or not _has_wandb_key()
    return WandbLogger(project=project, offline=offline, **kwargs)


def finish_wandb(failed: bool = False) -> None:
    """End the run, if there is one: Lightning leaves it open, and a sweep's next job would write into it."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=int(failed))


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(file).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_picture(trainer: Trainer, key: str, picture: np.ndarray) -> None:
    """Send an RGB uint8 picture ``h w 3`` to wandb and TensorBoard, where they are in use."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, trainer.global_step, dataformats="HWC")


def log_table(trainer: Trainer, key: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Send a table to wandb (as a table) and TensorBoard (as Markdown text)."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns=columns, data=rows, step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            lines = [columns, ["---"] * len(columns), *rows]
            text = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
            logger.experiment.add_text(key, text, trainer.global_step)
