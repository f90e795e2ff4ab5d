"""Runs that are stopped from outside save and end between two optimizer steps, and can go on as if never stopped."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from protoseg.distributed import all_reduce_, is_distributed
from protoseg.lightning import allow_steps, batches_begun, epoch_ended, loops_state, validate_now

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What schedulers send some time before they take the machine away."""


class Stopped(SystemExit):
    """A signal stopped the training. The exit code is 128 plus its number: SIGTERM 143, SIGUSR1 138, Ctrl-C 130."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)


class StopRequest:
    """Catches signals while it is used as a context, in the main thread; ``received`` is the first, None before."""

    def __init__(self, signals: tuple[signal.Signals, ...] = STOP_SIGNALS) -> None:
        self.signals = signals if threading.current_thread() is threading.main_thread() else ()
        self.received: int | None = None
        self._process = os.getpid()

    def __enter__(self) -> "StopRequest":
        self._before = {signum: signal.getsignal(signum) for signum in self.signals}
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def listen(self) -> None:
        """Catch the signals again, after someone else took them."""
        for signum in self.signals:
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.received = self.received or signum
        else:
            # A loader's worker, which has inherited this handler: its batches are wanted until the step is done.
            signal.alarm(30)  # seconds


class Restart(Checkpoint):
    """Saves ``path`` and ends the training, with :class:`Stopped`, once a stop is requested of any rank.

    All ranks agree after each optimizer step and each validation batch that all of them have. A validation that was due
    at a checkpoint's step and had not ended is run after the resume; Lightning would leave it out. A ``Checkpoint``,
    because Lightning calls those after all other callbacks; to be given before those that save.
    """

    def __init__(self, request: StopRequest, path: Path) -> None:
        self.request, self.path = request, path
        self._stepped = 0
        self._stopping: int | None = None
        self._validation_due = self._all_steps_done = False
        self._common: list[int] = []
        self._loops: dict[str, Any] | None = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has just put its own handlers in place, which speak to other ranks in the middle of a step.
        self.request.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.listen()
        self._stepped = trainer.global_step
        if self._all_steps_done:
            allow_steps(trainer, -1)
        if self._validation_due:
            validate_now(trainer)
        if (signum := self._agreed(trainer)) is not None:
            raise Stopped(signum)  # nothing was learned since the start or the checkpoint

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._leave()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._stepped:
            return  # still accumulating gradients
        self._stepped = trainer.global_step
        batches, interval = batches_begun(trainer), int(trainer.val_check_batch or 0)
        self._validation_due = trainer.enable_validation and interval > 0 and batches % interval == 0
        self._loops = loops_state(trainer)
        self._save_if_asked(trainer)  # left at the next hook: this step's metrics are logged only after this one

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave()
        batches: Any = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        common = torch.tensor([float(n) for n in batches], device=trainer.strategy.root_device)
        self._common = [int(n) for n in all_reduce_(common, "MIN")]

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking and batch_idx < self._common[dataloader_idx]:
            self._save_if_asked(trainer)
            self._leave()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation_due = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.validating and self._validation_due:
            checkpoint["loops"]["fit_loop"] = self._loops  # as of the end of the step: the validation is all to come

    def state_dict(self) -> dict[str, Any]:
        return {"validation_due": self._validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ended = self._loops is not None and epoch_ended(self._loops)
        self._validation_due = state_dict["validation_due"] is True and not ended

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._loops = checkpoint["loops"]["fit_loop"]
        self._all_steps_done = checkpoint["global_step"] == trainer.max_steps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._all_steps_done = self._all_steps_done and self._validation_due
        if self._all_steps_done:
            # Else Lightning would not begin at all; taken back in on_train_start, before any batch.
            allow_steps(trainer, 1)

    def _save_if_asked(self, trainer: pl.Trainer) -> None:
        self._stopping = self._agreed(trainer)
        if self._stopping is not None:
            trainer.save_checkpoint(self.path)

    def _leave(self) -> None:
        if self._stopping is not None:
            raise Stopped(self._stopping)

    def _agreed(self, trainer: pl.Trainer) -> int | None:
        """The signal that some rank received, the same answer on all of them."""
        if not is_distributed():
            return self.request.received
        received = torch.tensor(float(self.request.received or 0), device=trainer.strategy.root_device)
        return int(all_reduce_(received, "MAX")) or None
