"""What a training says of itself meanwhile: the bar, images per second, how its prototypes fare."""

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from protoseg.functional.prototypes import within_class_cosine
from protoseg.nn import PrototypeMemory
from protoseg.text import say
from protoseg.types import AdaptationBatch

_SHOWN = {"train/loss": "loss", "val/mIoU": "mIoU", "train/images_per_s": "images/s"}


class ProgressBar(RichProgressBar):
    """Lightning's rich bar without epochs, of which a training by steps has but one."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {short: shown[name] for name, short in _SHOWN.items() if name in shown}


class Throughput(pl.Callback):
    """Logs ``train/images_per_s`` (all ranks, loading too, validation not; over about 10 steps); says once the cost."""

    def __init__(self) -> None:
        self._tell_at = 0
        self._last: float | None = None
        self._seconds_per_image: float | None = None

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
        self._tell_at = trainer.global_step + 20

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
    """Logs the statistics of every memory of the module, after the optimizer steps that Lightning logs.

    The module moves its prototypes itself (``after_optimizer_step``), and brings this callback, so that no override
    of the callbacks can lose either.
    """

    def __init__(self) -> None:
        self._stepped = 0

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
    """Scalars for the logs.

    ``diversity``: mean pairwise cosine within a class (1: all K are one; lower is more diverse).
    ``moved``: share of prototypes that got at least one pixel in this step.
    ``balance``: entropy of the occupancy within a class over log K, mean over the classes seen.
    """
    total = memory.occupancy.sum(1, keepdim=True)
    statistics = {"moved": (memory.occupancy > 0).float().mean()}
    if (k := memory.occupancy.shape[1]) > 1:
        entropy = torch.special.entr(memory.occupancy / total.clamp_min(1)).sum()  # 0 of a class that was not seen
        statistics["diversity"] = within_class_cosine(memory.prototypes).mean()
        statistics["balance"] = entropy / (total > 0).sum().clamp_min(1) / torch.tensor(k).log()
    return statistics
