"""One job of ``train.py``: alone it is trained, in a sweep also skipped, resumed and accounted for."""

import gc
import logging
import math
import secrets
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from protoseg.callbacks.loggers import finish_wandb
from protoseg.files import write_file
from protoseg.job_records import Job, Sweep, alone_in, read_job, read_sweep, settings, write_job, write_manifest
from protoseg.run.errors import explain
from protoseg.run.launch import first_process, launch
from protoseg.text import visible
from protoseg.types import ProtosegError

log = logging.getLogger(__name__)


def run_job(cfg: DictConfig) -> float:
    """Train as configured; returns the best validation mIoU.

    In a multirun a job that is done is skipped, and one that was begun goes on. One that fails is recorded and returns
    NaN, so that the others go on; in a search by scores it raises its error, which the sweeper expects. Raises
    ProtosegError: alone, wrong input; in a multirun, another process runs this job, or its folder holds another.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return launch(cfg)
    folder, overrides = Path(hydra.runtime.output_dir), tuple(hydra.overrides.task)
    sweep = read_sweep(Path(hydra.sweep.dir).absolute())
    with alone_in(folder) if first_process() else nullcontext():
        job = read_job(folder) or Job(hydra.job.num, overrides, folder)
        if settings(job.overrides) != settings(overrides):
            text = f"{folder}: expected the job {' '.join(job.overrides)}, which began there, got {' '.join(overrides)}"
            raise ProtosegError(f"{text}; give the command that began the sweep, or choose another hydra.sweep.dir")
        if job.state == "done":
            log.info("job %d is done already: skipped", job.number)
            return job.score
        if job.state == "failed" and not sweep.planned:
            # The search went on from this failure; with a score instead it would not propose the jobs that it did.
            raise ProtosegError(f"job {job.number} failed before: {job.error}")
        return _account(cfg, job, sweep)


def _account(cfg: DictConfig, job: Job, sweep: Sweep) -> float:
    last = job.folder / "checkpoints" / "last.ckpt"
    resumed = last.is_file()
    if resumed:
        cfg.resume = str(last)
        log.info("job %d goes on from %s", job.number, visible(last))
    job = replace(job, state="running", error="", wandb_id=(resumed and job.wandb_id) or secrets.token_hex(8))
    if (wandb := (cfg.get("logger") or {}).get("wandb")) is not None:  # what the user has set stays
        if wandb.name == HydraConfig.get().job.name:
            wandb.name = sweep.name(job)
        wandb.group, wandb.id = wandb.group or sweep.folder.name, wandb.id or job.wandb_id
    record(job, sweep)
    before, started = job.seconds, time.perf_counter()

    def ended(state: str, score: float = math.nan, error: str = "") -> Job:
        return replace(job, state=state, score=score, error=error, seconds=before + time.perf_counter() - started)

    gc.collect()  # the model of the job before hangs in reference cycles, with the memory of its device
    try:
        score = launch(cfg)
    except Exception as error:
        message = explain(error, "train") or f"{type(error).__name__}: {error}"
        text = traceback.format_exc()
        write_file(job.folder / "error.log", lambda path: path.write_text(text, "utf-8", "backslashreplace"))
        record(ended("failed", error=message), sweep)
        finish_wandb(failed=True)
        log.error("job %d failed: %s", job.number, visible(f"{message} (traceback: {job.folder}/error.log)"))
        if not sweep.planned:
            raise  # Optuna's sweeper knows failures by their exception
        return math.nan
    except BaseException:  # Ctrl-C, or the cluster takes the machine away: the sweep ends
        record(ended("stopped"), sweep)
        raise
    record(ended("done", score), sweep)
    return score


def record(job: Job, sweep: Sweep) -> None:
    """Write the job's state; of several processes that train it the first does."""
    if first_process():
        write_job(job)
        write_manifest(read_sweep(sweep.folder))
