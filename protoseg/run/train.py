"""``train.py``: fit, then say what came out and where it lies."""

import logging
import math
import os
import time
import warnings
from itertools import chain, count
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback, ProgressBar
from pytorch_lightning.utilities import rank_zero_only

from protoseg.allocator import keep_freed_memory
from protoseg.callbacks.checkpoint import STOP_SIGNALS, AtomicCheckpointIO, Checkpoint, Restart, Stopped, StopRequest
from protoseg.callbacks.loggers import StepLog, finish_wandb, log_score
from protoseg.checkpoint import check_same_classes, checkpoint_label_space, read_checkpoint
from protoseg.data import AdaptationDataModule
from protoseg.evaluation.curves import curves_figure, read_log
from protoseg.files import remove_partial_files, write_text
from protoseg.job_records import read_job
from protoseg.lightning import log_by_global_step
from protoseg.models.build import wrong_input
from protoseg.run.build import build_datamodule, build_module, instances, plain, start_from, with_channels
from protoseg.run.launch import first_process, requested_devices
from protoseg.run.resuming import changed_settings, checkpoint_to_resume, is_finished, take_input
from protoseg.text import Terminal, command, markdown_table, override, program, say
from protoseg.trained import TrainedFile, open_file, unmoved
from protoseg.training import AdaptationModule
from protoseg.training.base import SegmentationModule
from protoseg.training.restoring import restoring
from protoseg.types import ProtosegError, check_choice, yaml_beside


def run_training(cfg: DictConfig, stop_signals: tuple[Signals, ...] = STOP_SIGNALS) -> float:
    """Train, as one of the processes if there are several; returns the best validation mIoU. Stopped by a signal."""
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
    cfg = with_channels(cfg)
    if cfg.optimizer.get("encoder_lr") == 0 and cfg.encoder.get("freeze") is False:
        cfg.encoder.freeze = True  # else BatchNorm's statistics would move
        rank_zero_only(say)("optimizer.encoder_lr=0: the encoder stays as it is, as with encoder.freeze=true")
    datamodule = build_datamodule(cfg)
    set_steps(cfg, datamodule)
    if cfg.resume is not None:
        # Before anything is built; the trainer will read the file in full.
        checkpoint = read_checkpoint(cfg.resume, mmap=True)
        check_same_classes(cfg.resume, checkpoint_label_space(checkpoint), datamodule.label_space)
        changed = changed_settings(cfg.resume, checkpoint, plain(cfg))
        if is_finished(checkpoint, cfg.trainer.max_steps):
            return show_finished(cfg, checkpoint, last, changed)
        if changed:
            rank_zero_only(say)(f"resumed with changed settings: {changed}")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # the folder of the checkpoints: as it should
    start = open_file(cfg.init_from).content if cfg.init_from and cfg.resume is None else None
    if start is not None:
        take_input(cfg, start)
    module = build_module(cfg, datamodule.label_space)
    if start is not None:
        rank_zero_only(say)(f"init_from={cfg.init_from}: {start_from(module, start, cfg)}")
    if cfg.adapter_only:
        leave_out_frozen(module, last)
    check_data_suit_method(datamodule, module)
    # Under a name that is free, for CSVLogger deletes the log that it finds.
    logs = next(name for name in chain(["logs"], (f"logs_{i}" for i in count(1))) if not (output / name).exists())
    # Written row by row: what is held back, a kill would take.
    loggers = [StepLog(output, name="", version=logs, flush_logs_every_n_steps=1), *instances(cfg.get("logger"))]
    callbacks, interval = instances(cfg.get("callbacks")), validation_interval(cfg)
    numbered = LambdaCallback(on_train_batch_start=lambda trainer, *_: log_by_global_step(trainer))
    precisions = ("32-true", "bf16-mixed", "16-mixed", "64-true", "32", "bf16", "16", "64")
    check_choice("trainer.precision", str(cfg.trainer.precision or 32), precisions)  # prototypes stay in fp32
    bar = any(isinstance(callback, ProgressBar) for callback in callbacks)  # else Lightning brings its own
    with wrong_input("trainer", ValueError, TypeError):
        trainer = instantiate(cfg.trainer, _partial_=True)(
            logger=loggers,
            callbacks=[numbered, Restart(request, last), *callbacks],  # in this order
            plugins=[AtomicCheckpointIO(), *own_environment()],
            default_root_dir=output,
            enable_progress_bar=cfg.trainer.get("enable_progress_bar", bar),
            val_check_interval=interval,
        )
    for logger in loggers:
        logger.log_hyperparams(module.config)
    announce(cfg, module, output)
    started = time.perf_counter()
    try:
        with restoring(cfg.resume):
            trainer.fit(module, datamodule, ckpt_path=cfg.resume, weights_only=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
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
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_only(say)("Dry run (trainer.fast_dev_run): training and validation work, and nothing was saved")
    elif trainer.is_global_zero:
        steps = f"{trainer.global_step} of {trainer.max_steps} in {(time.perf_counter() - started) / 60:.1f} min"
        score = summarise(steps, best_of(callbacks), metrics, output, learned_parameters(module))
        log_score(trainer, module.config, score)
        return score
    return metrics.get("val/mIoU", math.nan)


def leave_out_frozen(module: SegmentationModule, last: Path) -> None:
    """Let checkpoints hold what learns alone; ProtosegError where that is all, or the rest could not be read again."""
    module.left_out = [*unmoved(module.model.encoder)]
    if not module.left_out:
        frozen = "encoder.freeze=true, encoder.lora_rank=8 or encoder.rein_tokens=100"
        raise ProtosegError(f"adapter_only=true: expected a frozen encoder, got one that learns; set {frozen}")
    if module.config and module.config["resume"] is None:
        content: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(content)
        TrainedFile(last, content).whole()


def show_finished(cfg: DictConfig, checkpoint: dict[str, Any], last: Path, changed: str) -> float:
    """Print the outcome of a training whose steps were all done before; returns its best validation mIoU."""
    steps, most, output = checkpoint["global_step"], cfg.trainer.max_steps, Path(cfg.paths.output)
    if Path(cfg.resume).resolve() != last.resolve():
        done = f"got one that has done {steps} of trainer.max_steps={most}"
        remedy = "set that higher, or choose its own folder: resume=auto hydra.run.dir=…"
        raise ProtosegError(f"resume={cfg.resume}: expected a training with steps to do, {done}; {remedy}")
    best = best_of(instances(cfg.get("callbacks")))
    if best is not None and (state := checkpoint["callbacks"].get(best.state_key)) is not None:
        with wrong_input("resume", KeyError, TypeError, AttributeError):
            best.load_state_dict(state)
    metrics = {name: float(value) for row in read_log(output) for name, value in row.items() if value}
    score = summarise(f"{steps}, all of them before", best, metrics, output) if first_process() else math.nan
    rank_zero_only(say)(f"Nothing to do: all {most} steps were done before; to go on, set trainer.max_steps higher")
    if changed:
        rank_zero_only(say)(f"Changed settings have no effect any more: {changed}")
    return score


def set_steps(cfg: DictConfig, datamodule: Any) -> None:
    """Turn ``trainer.max_epochs`` into steps, and shorten a warm-up that the training has no steps for; say both."""
    trainer, epochs = cfg.trainer, cfg.trainer.max_epochs or -1
    if epochs > 0:
        devices, nodes = requested_devices(cfg)
        images = len(datamodule.source.train_dataset())
        batch = cfg.data.batch_size * devices * nodes * trainer.accumulate_grad_batches
        trainer.max_steps, trainer.max_epochs = math.ceil(epochs * images / batch), -1
        text = f"trainer.max_epochs={epochs} is trainer.max_steps={trainer.max_steps}"
        rank_zero_only(say)(f"{text}: {images} images, {batch} a step")
    if trainer.get("fast_dev_run"):
        trainer.max_steps = int(trainer.fast_dev_run)
    steps, warmup = trainer.max_steps, cfg.schedule.get("warmup_steps", 0)
    if warmup >= steps > 0:
        cfg.schedule.warmup_steps = steps // 10
        rank_zero_only(say)(f"schedule.warmup_steps={warmup} is shortened to {steps // 10} for a training of {steps}")


def best_of(callbacks: list[Any]) -> Checkpoint | None:
    """The callback that keeps the best checkpoint, if there is one."""
    return next((c for c in callbacks if isinstance(c, Checkpoint) and c.monitor), None)


def own_environment() -> list[SLURMEnvironment]:
    """SLURM's, where Lightning would find it, without Lightning's requeueing, which saves in the middle of a step."""
    alone = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if alone else []


@rank_zero_only
def tell_of_stop(step: int, last: Path) -> None:
    """Say where the training stands and how it goes on."""
    run = last.parents[1]
    of_sweep = read_job(run) is not None
    words = [override("hydra.sweep.dir", run.parent)] if of_sweep else ["resume=auto", override("hydra.run.dir", run)]
    saved = f"last checkpoint: {last}; to go on: the same command with {command(*words)}"
    say(f"Stopped after step {step}; {saved if last.is_file() else 'there is no checkpoint yet'}", stderr=True)


def check_data_suit_method(datamodule: pl.LightningDataModule, module: SegmentationModule) -> None:
    """Raise ProtosegError unless adaptation has a source and a target, and supervised training one data set."""
    pair, adapts = isinstance(datamodule, AdaptationDataModule), isinstance(module, AdaptationModule)
    if pair != adapts:
        given = "a source and a target" if pair else "one data set"
        text = f"data and method: got {given} for {type(module).__name__}; use data=SOURCE_to_TARGET with a method of"
        raise ProtosegError(f"{text} adaptation (source_only, dacs, daformer, mic), other data with method=supervised")


@rank_zero_only
def announce(cfg: DictConfig, module: SegmentationModule, output: Path) -> None:
    """Say in one line what is about to be trained."""
    model, space = module.model, module.label_space
    images = f"{cfg.data.batch_size} + {cfg.data.batch_size}" if "target" in cfg.data else cfg.data.batch_size
    parts = " + ".join(type(part).__name__ for part in (model.encoder, model.decoder, model.head))
    what = f"{parts}, {learned_parameters(module) / 1e6:.2f} M learned parameters, {space.num_classes} classes"
    say(f"{what} ({space.name}), {cfg.trainer.max_steps} steps of {images} images. Folder: {output}")
    if any(side % model.encoder.patch for side in cfg.data.crop_size):
        say(f"Crops of {cfg.data.crop_size} are padded to whole patches of {model.encoder.patch} pixels")


def learned_parameters(module: SegmentationModule) -> int:
    """Number of the network's parameters that a gradient reaches: prototypes are buffers and count as none."""
    return sum(parameter.numel() for parameter in module.model.parameters() if parameter.requires_grad)


def validation_interval(cfg: DictConfig) -> int:
    """Batches between validations: never more than there are, so that short trial runs validate too."""
    interval, accumulate = cfg.trainer.val_check_interval, cfg.trainer.accumulate_grad_batches
    if not isinstance(interval, int) or interval < 1:  # fractions of an epoch mean nothing in a training by steps
        raise ProtosegError(f"trainer.val_check_interval: expected a number of batches, at least 1, got {interval}")
    # A multiple of the accumulated batches: a checkpoint between two optimizer steps would lose half a gradient.
    return max(accumulate, min(interval, cfg.trainer.max_steps * accumulate) // accumulate * accumulate)


def quiet_known_warnings() -> None:
    """Silence what Lightning says of choices made on purpose."""
    for name in ("pytorch_lightning", "lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in yaml_beside(__file__, "quiet.yaml"):
        warnings.filterwarnings("ignore", pattern)


def summarise(
    steps: str, best: Checkpoint | None, metrics: dict[str, float], output: Path, parameters: int | None = None
) -> float:
    """Print the outcome and the paths of what was written, draw the curves; returns the best score."""
    best_score = best.best_model_score if best is not None else metrics.get("val/mIoU")
    validated, last_score = "val/mIoU" in metrics, metrics.get("val/mIoU", math.nan)
    score = math.nan if best_score is None or not math.isfinite(best_score) else float(best_score)
    monitor = (best and best.monitor) or "val/mIoU"
    best_file = best.best_file if best is not None else None
    teacher, diversity = metrics.get("val/teacher_mIoU"), metrics.get("prototypes/diversity")
    elsewhere = "none here: it is older than the checkpoint that was resumed, and beside that" if best_score else "none"
    if logs := sorted(output.glob("logs*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        curves_figure(output).savefig(output / "curves.png")
    found = {
        "steps": steps,
        "best val mIoU" if monitor == "val/mIoU" else f"best {monitor}": in_words(score, validated),
        "last val mIoU": in_words(last_score, validated),
        "last val mIoU of the teacher": None if teacher is None else f"{teacher:.4f}",
        "prototype diversity (mean cosine)": None if diversity is None else f"{diversity:.3f}",
        "learned parameters": None if parameters is None else f"{parameters / 1e6:.2f} M",  # else trained before
        "best checkpoint": best_file or elsewhere,
        "last checkpoint": output / "checkpoints" / "last.ckpt",
        "metrics": logs[-1] if logs else None,
        "curves": output / "curves.png" if logs else None,
        "predictions, prototypes": output / "panels" if (output / "panels").is_dir() else None,
    }
    rows = [(what, str(value)) for what, value in found.items() if value is not None]
    Terminal().table("Training finished", ("", ""), rows, left=(0, 1))
    if parameters is not None:
        explain_folder(output, rows)
    if best_file is not None:
        network = ["network=teacher"] if "teacher" in monitor else []
        say(f"Evaluate it: {program('evaluate', override('ckpt_path', best_file), *network)}")
    elif not validated:
        again = program("evaluate", override("ckpt_path", output / "checkpoints" / "last.ckpt"))
        say(f"Nothing is known of how right it is. Look at it: {again} mode=predict images=FOLDER")
    if "mIoU" in monitor:  # that of a teacher, or of SYNTHIA's 16 classes, too
        return score
    logged = [float(row.get("val/mIoU") or math.nan) for row in read_log(output)]
    return max(filter(math.isfinite, logged), default=math.nan)  # sweeps compare mIoU, whatever chose the checkpoint


def explain_folder(output: Path, rows: list[tuple[str, str]]) -> None:
    """Write what the run was and where its files are into its README.md, unless somebody has written one."""
    page, said = output / "README.md", output / ".hydra" / "overrides.yaml"
    template = Path(__file__).with_name("run_folder.md").read_text("utf-8")
    if page.exists() and not page.read_text("utf-8", "replace").startswith(template.partition("\n")[0]):
        return
    words: Any = OmegaConf.to_container(OmegaConf.load(said)) if said.is_file() else []  # with ${…} as it was written
    table = markdown_table(("what", "here"), [(what, text.removeprefix(f"{output}{os.sep}")) for what, text in rows])
    write_text(page, template.format(command=command("protoseg", "train", *words), table=table))


def in_words(score: float, validated: bool) -> str:
    """A validation score for the table, or why there is none."""
    if math.isfinite(score):
        return f"{score:.4f}"
    return "none: no validated pixel was labelled" if validated else "none: nothing was validated"
