"""All that leans on names that Lightning does not promise, as of 2.6; what each is for is in ``docs/resuming.md``."""

from traceback import walk_tb
from typing import Any

import pytorch_lightning as pl


def batches_begun(trainer: pl.Trainer) -> int:
    """Training batches begun, over resumes too; ``batch_idx`` starts anew where a finished run is extended."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def batches_seen(trainer: pl.Trainer) -> int:
    """Training batches that the model has learned from; ``completed`` is one behind while a batch's end saves."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]


def replaces_samplers(trainer: pl.Trainer) -> bool:
    """Whether Lightning would put samplers of its own in place of the DataModule's."""
    connector = trainer._accelerator_connector
    return connector.is_distributed and connector.use_distributed_sampler


def loops_state(trainer: pl.Trainer) -> dict[str, Any]:
    """Where the training stands, as a checkpoint keeps it in ``loops.fit_loop``."""
    return trainer.fit_loop.state_dict()  # type: ignore[no-untyped-call]


def optimizer_steps(loops: dict[str, Any]) -> Any:
    """Steps of the optimizer that a checkpoint's ``loops.fit_loop`` says; raises KeyError where it has none."""
    return loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]


def epoch_ended(loops: dict[str, Any]) -> bool:
    """Whether ``loops.fit_loop`` is of a training after its end: Lightning would look for a next step for ever."""
    return bool(loops["epoch_progress"]["current"]["completed"] > 0)


def allow_steps(trainer: pl.Trainer, more: int) -> None:
    """Move the limit of steps: with none left Lightning begins no training, and so no validation that is due."""
    trainer.fit_loop.epoch_loop.max_steps += more


def validate_now(trainer: pl.Trainer) -> None:
    """What Lightning does between two steps; it logs with the number of the step that the checkpoint is of."""
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def log_by_global_step(trainer: pl.Trainer) -> None:
    """Lightning logs steps by a count of its own, one off where a finished training goes on. To be called first."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def failed_while_restoring(error: BaseException) -> bool:
    """Whether an error comes from where Lightning restores a checkpoint."""
    codes = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    names = [code.co_name for code in codes if code.co_filename.endswith("checkpoint_connector.py")]
    return any("restore" in name or "resume" in name for name in names)
