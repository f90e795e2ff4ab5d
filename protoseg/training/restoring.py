"""A training goes on from a checkpoint that may be a stranger's: numbers are taken from it where they are sound."""

import math
import warnings
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from protoseg.callbacks.checkpoint import Checkpoint, own_state
from protoseg.lightning import failed_while_restoring, loops_state, optimizer_steps
from protoseg.types import ProtosegError, told

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def restoring(path: str | None) -> AbstractContextManager[None]:
    """Tell in one message where Lightning cannot restore the checkpoint at ``path``; errors of the training pass."""

    def message(error: Exception) -> str | None:
        damaged = _damaged(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return str(damaged) if path is not None and failed_while_restoring(error) else None

    return told(message, Exception)


def prepare(checkpoint: dict[str, Any], trainer: pl.Trainer) -> None:
    """Check what Lightning would take as it is, and take out what is known better here; changes ``checkpoint``.

    Left out: the schedule (see :func:`renew`), paths of checkpoints (see :func:`own_state`), and the place in a loader,
    which the DataModule keeps. Raises ProtosegError: counts that are none, or no place in the data.
    """
    loops, step = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
    known = loops_state(trainer)
    for name in known.keys() & loops.keys():
        _check_like(loops[name], known[name], name)
    if type(step) is not int or (done := optimizer_steps(loops)) != step:
        raise _damaged(f"global_step {step!r}, and {done!r} steps of the optimizer")
    loops["state_dict"] = {}
    checkpoint["lr_schedulers"] = []
    checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time is of each start
    if (datamodule := trainer.datamodule) is not None:  # type: ignore[attr-defined]
        name = type(datamodule).__qualname__
        if name not in checkpoint:
            raise _damaged(f"no place in the training data ({name})")
        place, each = checkpoint[name], trainer.accumulate_grad_batches
        for part in [place[key] for key in ("source", "target") if key in place] or [place]:
            seen = part.get("batches")
            if type(seen) is not int or not step * each <= seen < (step + 1) * each:
                raise _damaged(f"{seen!r} batches of the training data for {step} steps of {each}")
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint["callbacks"].get(getattr(callback, "state_key", None))
        if state is not None and isinstance(callback, ModelCheckpoint) and not isinstance(callback, Checkpoint):
            checkpoint["callbacks"][callback.state_key] = own_state(callback, state)


def renew(optimizer: Optimizer, schedule: LRScheduler, settings: list[dict[str, Any]], step: int) -> None:
    """Let a restored optimizer follow this run's settings, and a new schedule be as after ``step`` steps, to the bit.

    Raises ProtosegError: moments that do not fit the parameters.
    """
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, Tensor):
            raise _damaged(f"moments of the parameter {str(parameter)[:40]!r}, which there is not")
        wrong = [k for k in _MOMENTS if isinstance(v := state.get(k), Tensor) and v.shape != parameter.shape]
        wrong += [k for k in _MOMENTS if k in state and not isinstance(state[k], (Tensor, type(None)))]
        if isinstance(optimizer, Adam):
            wrong += [k for k in ("step", "exp_avg", "exp_avg_sq") if k not in state]
            count = state.get("step")
            number = isinstance(count, (int, float)) or (isinstance(count, Tensor) and count.ndim == 0)
            wrong += [] if number and 0 <= float(count) < math.inf else ["step"]
        if wrong:
            raise _damaged(f"the optimizer's {wrong[0]} does not fit a parameter of shape {list(parameter.shape)}")
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "lr_scheduler.step() before optimizer.step()"
        for _ in range(step):
            schedule.step()


def _check_like(saved: Any, like: Any, where: str) -> None:
    """Lightning makes attributes of whatever it finds here, and stumbles over them in mid-training."""
    if isinstance(like, dict) and like:
        if not isinstance(saved, dict) or not saved.keys() <= like.keys():
            raise _damaged(f"{where}: expected {', '.join(like)}, got {str(saved)[:80]}")
        for key, value in saved.items():
            _check_like(value, like[key], f"{where}.{key}")
    elif isinstance(like, int) and (type(saved) is not type(like) or saved < 0):
        raise _damaged(f"{where}: expected {'true or false' if isinstance(like, bool) else 'a count'}, got {saved!r}")


def _damaged(what: str) -> ProtosegError:
    text = f"resume: the checkpoint's state of the training is damaged, or of another kind ({what})"
    return ProtosegError(f"{text}; resume another checkpoint, or start a new run")
