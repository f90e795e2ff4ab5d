"""Checkpoints of a run that may go on, in another folder too, from a file that is not trusted; stops that leave one."""

import os
import re
import shutil
import signal
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.distributed import all_reduce_, is_distributed
from protoseg.files import write_file
from protoseg.lightning import allow_steps, batches_begun, epoch_ended, loops_state, validate_now
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What schedulers send some time before they take the machine away."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the two functions of :mod:`protoseg.checkpoint`: whole files, and reading runs no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return TrainedFile(Path(path), read_checkpoint(path, map_location)).whole().content


class Checkpoint(ModelCheckpoint):
    """Lightning's, but a run resumed into a new folder keeps the best scores it had; see :func:`own_state`.

    Lightning forgets them, so that a run which has passed its peak would write a worse ``best``. Of several best ones
    (``save_top_k=3``) each is a file with its step, ``best-000250.ckpt``, and ``best.ckpt`` is a further name of the
    best of them, unless ``filename`` has fields of its own (``{step}``).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._best_name: str | None = None
        if self.monitor is not None and self.save_top_k not in (0, 1) and "{" not in (self.filename or "{"):
            self._best_name = f"{self.filename}{self.FILE_EXTENSION}"
            self.filename, self.auto_insert_metric_name = f"{self.filename}-{{step:06d}}", False

    @property
    def best_file(self) -> Path | None:
        """The best checkpoint; None where there is none in this run's folder."""
        path = Path(self.dirpath or "", self._best_name) if self._best_name else Path(self.best_model_path)
        return path if path.is_file() else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(own_state(self, state_dict))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if self._best_name and trainer.is_global_zero and Path(self.best_model_path).is_file():
            write_file(Path(self.dirpath or "", self._best_name), partial(_link, self.best_model_path))


def own_state(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint callback, its paths those of the run's own folder.

    Lightning deletes the files that a state names once there are better ones, and a checkpoint may be a stranger's. So
    of each path only a name that the callback itself would give is taken. A score counts without its file, too. Raises
    ProtosegError: scores that are no numbers.
    """
    folder = Path(callback.dirpath or "")
    pattern = re.sub(r"\\{.*?\\}", ".+", re.escape(callback.filename or "{epoch}-{step}"))

    def own(path: object, number: int = 0) -> str:
        name = os.path.basename(str(path))
        named_so = re.fullmatch(rf"{pattern}(-v\d+)?\.ckpt", name)
        return str(folder / (name if named_so else f".earlier-{number}.ckpt"))

    scores = {own(path, i): _score(score) for i, (path, score) in enumerate(state["best_k_models"].items())}
    ranked = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
    kept = ranked if callback.save_top_k == -1 else ranked[: callback.save_top_k]
    best = kept[0] if kept else own(state["best_model_path"])
    full = bool(kept) and len(kept) == callback.save_top_k
    return {
        "dirpath": callback.dirpath,
        "best_k_models": {path: score for path, score in scores.items() if path in kept},
        "best_model_path": best if Path(best).is_file() else "",
        "best_model_score": scores[kept[0]] if kept else None,
        **({"kth_best_model_path": kept[-1], "kth_value": scores[kept[-1]]} if full else {}),
    }


def _score(score: object) -> torch.Tensor:
    if isinstance(score, (int, float, torch.Tensor)):
        value = torch.as_tensor(score)
        if value.numel() == 1 and not value.is_complex() and not value.isnan().any():
            return value
    raise ProtosegError(f"checkpoint: expected scores of its best models that are numbers, got {str(score)[:40]!r}")


def _link(target: str, name: Path) -> None:
    name.unlink(missing_ok=True)  # of a process that was killed: a copy would write into the checkpoint it names
    try:
        os.link(target, name)
    except OSError:  # a disk without hard links
        shutil.copyfile(target, name)


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


class Restart(pl.callbacks.Checkpoint):
    """Saves ``path`` and ends the training, with :class:`Stopped`, once a stop is requested of any rank.

    All ranks agree after each optimizer step and each validation batch that all of them have. A validation that was due
    at a checkpoint's step and had not ended is run after the resume; Lightning would leave it out. A ``Checkpoint``
    of Lightning's, which calls those after all other callbacks; to be given before those that save.
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

    def on_train_batch_start(self, *hook: Any) -> None:
        self._leave()

    on_train_epoch_end = on_train_batch_start  # type: ignore[assignment]

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
