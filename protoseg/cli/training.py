"""``train.py``: fit, then say what came out and where it lies."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from signal import SIGINT, Signals

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.table import Table

from protoseg.allocator import keep_freed_memory
from protoseg.callbacks.loggers import finish_wandb
from protoseg.callbacks.restart import STOP_SIGNALS, Restart, Stopped, StopRequest
from protoseg.checkpoint import AtomicCheckpointIO, check_same_classes, checkpoint_label_space, read_checkpoint
from protoseg.cli.build import build_datamodule, build_module, instances
from protoseg.curves import curves_figure
from protoseg.data import AdaptationDataModule
from protoseg.files import remove_partial_files
from protoseg.models.build import wrong_input
from protoseg.sweep import read_job
from protoseg.text import Terminal, command, override, say
from protoseg.training import AdaptationModule
from protoseg.training.base import SegmentationModule
from protoseg.types import ProtosegError


def run_training(cfg: DictConfig, stop_signals: tuple[Signals, ...] = STOP_SIGNALS) -> float:
    """Train as configured, as one of the processes if there are several; returns the best validation mIoU.

    Args:
        cfg: the composed config.
        stop_signals: what makes the training save and end before the next step.

    Raises:
        ProtosegError: wrong input; see the message.
        Stopped: one of ``stop_signals`` was received, by any of the processes, or Ctrl-C.
    """
    with StopRequest(stop_signals) as request:
        return _train(cfg, request)


def _train(cfg: DictConfig, request: StopRequest) -> float:
    quiet_known_warnings()
    keep_freed_memory()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    output = Path(cfg.paths.output)
    last = output / "checkpoints" / "last.ckpt"
    cfg = cfg.copy()
    cfg.resume = checkpoint_to_resume(cfg.resume, last)
    rank_zero_only(remove_partial_files)(last.parent)
    datamodule = build_datamodule(cfg)
    if cfg.resume is not None:
        # Before anything is built; the trainer will read the file in full.
        trained = checkpoint_label_space(read_checkpoint(cfg.resume, mmap=True))
        check_same_classes(cfg.resume, trained, datamodule.label_space)
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # the folder of the checkpoints: as it should
    module = build_module(cfg, datamodule.label_space)
    check_data_suit_method(datamodule, module)
    # Written row by row: what is held back, a kill would take.
    log = CSVLogger(output, name="", version=unused_name(output, "logs"), flush_logs_every_n_steps=1)
    loggers = [log, *instances(cfg.get("logger"))]
    callbacks, interval = instances(cfg.get("callbacks")), validation_interval(cfg)
    with wrong_input("trainer", ValueError, TypeError):
        trainer = instantiate(cfg.trainer, _partial_=True)(
            logger=loggers,
            callbacks=[Restart(request, last), *callbacks],
            plugins=[AtomicCheckpointIO(), *own_environment()],
            default_root_dir=output,
            val_check_interval=interval,
        )
    for logger in loggers:
        logger.log_hyperparams(module.config)

    announce(cfg, module, output)
    started = time.perf_counter()
    try:
        with port_in_use():
            trainer.fit(module, datamodule, ckpt_path=cfg.resume, weights_only=True)
        trainer.save_checkpoint(last)
    except BaseException as error:
        finish_wandb(failed=True)
        if isinstance(error, SystemExit):
            # Lightning makes one of Ctrl-C too, with code 1.
            stopped = error if isinstance(error, Stopped) else Stopped(SIGINT)
            tell_of_stop(trainer.global_step, last)
            raise stopped from None
        raise
    finish_wandb()
    if trainer.is_global_zero:
        return summarise(trainer, module, output, time.perf_counter() - started)
    return float(trainer.callback_metrics.get("val/mIoU", float("nan")))


def checkpoint_to_resume(resume: str | None, last: Path) -> str | None:
    """``resume``; or, where it is ``auto`` or a scheduler has restarted this run, ``last`` if there is such a file."""
    restarts = (os.environ.get(name) or "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    if resume == "auto":
        return str(last) if last.is_file() else None
    return str(last) if any(int(count) for count in restarts) and last.is_file() else resume


def own_environment() -> list[SLURMEnvironment]:
    """SLURM's, where Lightning would find it, without Lightning's requeueing, which saves in the middle of a step."""
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


@contextmanager
def port_in_use() -> Iterator[None]:
    """Tell what to do where the processes cannot meet."""
    try:
        yield
    except torch.distributed.DistNetworkError as error:
        address, port = (os.environ.get(f"MASTER_{name}") for name in ("ADDR", "PORT"))
        raise ProtosegError(
            f"the processes cannot meet at port {port} of {address} ({str(error).splitlines()[0]}); where it is in use "
            "choose another: torchrun --master-port=N, or under SLURM MASTER_PORT=N"
        ) from error


@rank_zero_only
def tell_of_stop(step: int, last: Path) -> None:
    """Say where the training stands and how it goes on."""
    run = last.parents[1]
    of_sweep = read_job(run) is not None
    place = override("hydra.sweep.dir", run.parent) if of_sweep else override("hydra.run.dir", run)
    again = command(place) if of_sweep else command("resume=auto", place)
    saved = f"last checkpoint: {last}; to go on: the same command with {again}"
    say(f"Stopped after step {step}; {saved if last.is_file() else 'there is no checkpoint yet'}", stderr=True)


def check_data_suit_method(datamodule: pl.LightningDataModule, module: SegmentationModule) -> None:
    """Adaptation needs a source and a target, supervised training has one data set.

    Raises:
        ProtosegError: the one was given what the other needs.
    """
    pair, adapts = isinstance(datamodule, AdaptationDataModule), isinstance(module, AdaptationModule)
    if pair != adapts:
        given = "a source and a target" if pair else "one data set"
        raise ProtosegError(
            f"data and method: got {given} for {type(module).__name__}; use a method of adaptation (source_only, dacs, "
            "daformer, mic) with data=SOURCE_to_TARGET, and method=supervised with any other data"
        )


def unused_name(folder: Path, name: str) -> str:
    """``name``, or ``name_1``, ``name_2``, … where it is taken: CSVLogger deletes the log that it finds."""
    taken = next(i for i in count() if not (folder / (f"{name}_{i}" if i else name)).exists())
    return f"{name}_{taken}" if taken else name


@rank_zero_only
def announce(cfg: DictConfig, module: SegmentationModule, output: Path) -> None:
    """Say in one line what is about to be trained."""
    model, space = module.model, module.label_space
    images = f"{cfg.data.batch_size} + {cfg.data.batch_size}" if "target" in cfg.data else cfg.data.batch_size
    parts = " + ".join(type(part).__name__ for part in (model.encoder, model.decoder, model.head))
    say(
        f"{parts}, {learned_parameters(module) / 1e6:.2f} M learned parameters, {space.num_classes} classes "
        f"({space.name}), {cfg.trainer.max_steps} steps of {images} images. Folder: {output}"
    )


def learned_parameters(module: SegmentationModule) -> int:
    """Number of parameters that a gradient reaches: prototypes are buffers and count as none."""
    return sum(parameter.numel() for parameter in module.model.parameters())


def validation_interval(cfg: DictConfig) -> int:
    """Batches between validations: never more than there are, so that short trial runs validate too.

    Raises:
        ProtosegError: not a whole number; Lightning's fractions of an epoch mean nothing in a training by steps.
    """
    interval, accumulate = cfg.trainer.val_check_interval, cfg.trainer.accumulate_grad_batches
    if not isinstance(interval, int) or interval < 1:
        raise ProtosegError(f"trainer.val_check_interval: expected a number of batches, at least 1, got {interval}")
    # A multiple of the accumulated batches: a checkpoint between two optimizer steps would lose half a gradient.
    return max(accumulate, min(interval, cfg.trainer.max_steps * accumulate) // accumulate * accumulate)


def quiet_known_warnings() -> None:
    """Silence what Lightning says of choices made on purpose."""
    for name in ("pytorch_lightning", "lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*logging on a step-level.*",
        ".*module.s. in eval mode at the start of training.*",  # teacher and ImageNet reference, on purpose
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*sync_dist=True.*",  # what is logged was summed over ranks before the mean was taken
    ):
        warnings.filterwarnings("ignore", pattern)


def summarise(trainer: pl.Trainer, module: SegmentationModule, output: Path, seconds: float) -> float:
    """Print the outcome and the paths of what was written; draw the curves."""
    metrics = trainer.callback_metrics
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    best_score = best.best_model_score if best is not None else metrics.get("val/mIoU")
    score = float("nan") if best_score is None else float(best_score)
    log_file = next(Path(x.log_dir) for x in trainer.loggers if isinstance(x, CSVLogger)) / "metrics.csv"

    table = Table(title="Training finished", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("steps", f"{trainer.global_step} in {seconds / 60:.1f} min")
    table.add_row("best val mIoU", f"{score:.4f}")
    table.add_row("last val mIoU", f"{float(metrics.get('val/mIoU', float('nan'))):.4f}")
    if "val/teacher_mIoU" in metrics:
        table.add_row("last val mIoU of the teacher", f"{float(metrics['val/teacher_mIoU']):.4f}")
    if "prototypes/diversity" in metrics:
        table.add_row("prototype diversity (mean cosine)", f"{float(metrics['prototypes/diversity']):.3f}")
    table.add_row("learned parameters", f"{learned_parameters(module) / 1e6:.2f} M")
    table.add_row("best checkpoint", best.best_model_path if best is not None else "none")
    table.add_row("last checkpoint", str(output / "checkpoints" / "last.ckpt"))
    table.add_row("metrics", str(log_file))
    if log_file.is_file():
        curves_figure(output).savefig(output / "curves.png")
        table.add_row("curves", str(output / "curves.png"))
    if (output / "panels").is_dir():
        table.add_row("predictions, prototypes", str(output / "panels"))
    Terminal().print(table)
    if best is not None and best.best_model_path:
        say(f"Evaluate it: {command('python', 'evaluate.py', override('ckpt_path', best.best_model_path))}")
    return score
