"""Reports how the prototypes of a module fare."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from protoseg.nn import PrototypeMemory


class PrototypeMemoryCallback(pl.Callback):
    """Logs the statistics of every memory of the module, after the optimizer steps that Lightning logs.

    The module moves its prototypes itself (``after_optimizer_step``), and brings this callback, so that no override
    of the callbacks can lose either.
    """

    def __init__(self) -> None:
        self._stepped = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stepped = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._stepped:
            return  # still accumulating gradients
        self._stepped = trainer.global_step
        if self._stepped % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for name, memory in pl_module.memories.items():
                statistics = memory_statistics(memory)
                pl_module.log_dict({f"{name}/{key}": value for key, value in statistics.items()})


@torch.no_grad()
def memory_statistics(memory: PrototypeMemory) -> dict[str, Tensor]:
    """Scalars for the logs.

    ``diversity``: mean pairwise cosine within a class (1: all K are one; lower is more diverse).
    ``moved``: share of prototypes that got at least one pixel in this step.
    ``balance``: entropy of the occupancy within a class over log K, mean over the classes seen.
    """
    occupancy = memory.occupancy
    share = occupancy / occupancy.sum(1, keepdim=True).clamp_min(1)
    entropy = torch.special.entr(share).sum(1)
    k = occupancy.shape[1]
    statistics = {"moved": (occupancy > 0).float().mean()}
    if k > 1:
        seen = occupancy.sum(1) > 0
        statistics["diversity"] = memory.diversity().mean()
        statistics["balance"] = (entropy * seen).sum() / seen.sum().clamp_min(1) / torch.tensor(k).log()
    return statistics
