"""Keeps the prototype memory in step with the optimizer, and reports how its prototypes fare."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from protoseg.nn import PrototypeMemory
from protoseg.nn.prototype_memory import Observation


class PrototypeMemoryCallback(pl.Callback):
    """Feeds every micro-batch's ``observations`` to the memory and moves it once per optimizer step.

    Where K > 1, accumulated micro-batches wait for the last of their step and are clustered together: they keep their
    embeddings until then.

    The LightningModule brings it (``configure_callbacks``), so that no override of the callbacks can lose it.
    It does nothing for models without prototypes.
    """

    def __init__(self) -> None:
        self._stepped = 0
        self._waiting: list[list[Observation]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stepped = trainer.global_step
        self._waiting = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        memory = find_memory(pl_module)
        observations = outputs.get("observations")
        if memory is None or not observations:
            return
        self._waiting.append(observations)
        accumulating = trainer.global_step == self._stepped
        if accumulating and memory.balances:
            return
        for parts in zip(*self._waiting, strict=True):
            memory.observe_accumulated(parts)
        self._waiting = []
        if accumulating:
            return
        self._stepped = trainer.global_step
        memory.step()
        if self._stepped % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(memory_statistics(memory))


def find_memory(module: torch.nn.Module) -> PrototypeMemory | None:
    """The memory of a module's model, if its head has prototypes; else that of its adaptation terms, if one has any."""
    head = getattr(getattr(module, "model", module), "head", None)
    holders = [head, *getattr(module, "terms", torch.nn.ModuleDict()).values()]
    return next((holder.memory for holder in holders if getattr(holder, "memory", None) is not None), None)


@torch.no_grad()
def memory_statistics(memory: PrototypeMemory) -> dict[str, Tensor]:
    """Scalars for the logs.

    ``prototypes/diversity``: mean pairwise cosine within a class (1: all K are one; lower is more diverse).
    ``prototypes/moved``: share of prototypes that got at least one pixel in this step.
    ``prototypes/balance``: entropy of the occupancy within a class over log K, mean over the classes seen.
    """
    occupancy = memory.occupancy
    share = occupancy / occupancy.sum(1, keepdim=True).clamp_min(1)
    entropy = torch.special.entr(share).sum(1)
    k = occupancy.shape[1]
    statistics = {"prototypes/moved": (occupancy > 0).float().mean()}
    if k > 1:
        seen = occupancy.sum(1) > 0
        statistics["prototypes/diversity"] = memory.diversity().mean()
        statistics["prototypes/balance"] = (entropy * seen).sum() / seen.sum().clamp_min(1) / torch.tensor(k).log()
    return statistics
