"""A run or multirun: before its start its folder, and every job composed and planned; each job; a table at its end."""

import gc
import logging
import math
import os
import secrets
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from protoseg.files import write_text
from protoseg.job_records import Job, Sweep, alone_in, read_job, read_sweep, settings, write_job, write_manifest
from protoseg.run.config import check_ranges, explain, explained
from protoseg.run.launch import first_process, launch
from protoseg.run.resuming import check_folder, reserve
from protoseg.text import Terminal, command, override, progress, say, visible
from protoseg.types import ProtosegError, told

log = logging.getLogger(__name__)
_folder: Path | None = None  # of the multirun that this process started


class SweepCallback(Callback):
    """Hydra's hooks before a run and a multirun; they end the program where that cannot be."""

    def __init__(self) -> None:
        self._held = ExitStack()  # the lock of the run's folder

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the folder from all other runs, before Hydra writes into it."""
        if not first_process():
            return
        with ending_the_program():
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.run.dir = reserve(str(config.hydra.run.dir), config.hydra.run)
                config.hydra.runtime.output_dir = os.path.abspath(config.hydra.run.dir)
            with hydra_config(config):
                folder = Path(config.paths.output).absolute()
            self._held.enter_context(alone_in(folder))
            check_folder(folder, config.resume, config.overwrite)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._held.close()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with ending_the_program():
            start(config)


@contextmanager
def ending_the_program() -> Iterator[None]:
    """Of an Exception in its hooks Hydra would make a warning, and go on; SystemExit it lets through."""
    try:
        with explained():
            yield
    except Exception as error:
        if not isinstance(error, ProtosegError):
            traceback.print_exc()
        say(f"error: {error}", stderr=True)
        sys.exit(1)


@contextmanager
def hydra_config(config: DictConfig) -> Iterator[None]:
    """What ``${hydra:…}`` reads from, meanwhile."""
    earlier = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = earlier


def start(config: DictConfig) -> None:
    """Compose every job of a multirun and write its plan; a folder that has one already is continued."""
    global _folder
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or not first_process():
        text = "multirun: expected one process, which starts the workers of each job itself, got several"
        raise ProtosegError(f"{text}; call train.py -m … without torchrun or srun (launcher=submitit is for SLURM)")
    if config.overwrite:
        text = "overwrite: expected false for a multirun, which goes on with the jobs that are not done, got true"
        raise ProtosegError(f"{text}; choose another hydra.sweep.dir, or delete the folder")
    loader = GlobalHydra.instance().config_loader()
    default = str(config.hydra.sweep.dir)
    folder = reserve(default, config.hydra.sweep)
    if folder != default:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = folder
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")  # of which its jobs are composed
    try:
        new = plan(config, loader)
    except ProtosegError:
        with suppress(OSError):
            os.rmdir(folder)  # if it was made just now: it is empty
        raise
    if (new.folder / "manifest.json").is_file():
        # What jobs have that were begun without a seed, where it is swept now.
        sweep = go_on(read_sweep(new.folder), new, {"seed": str(config.seed)} if "seed" in new.swept else {})
    else:
        sweep = new
        if found := [job.folder for job in sweep.jobs if job.folder.exists()]:
            raise ProtosegError(f"{found[0]} exists, but no manifest.json beside it; choose another hydra.sweep.dir")
    write_manifest(sweep)
    _folder = sweep.folder
    begun = _states([job for job in sweep.jobs if job.state != "waiting"])
    jobs = f"{len(sweep.jobs)} jobs" if sweep.planned else "a search"
    say(f"Sweep: {jobs}{f' ({begun})' if begun else ''}. Folder: {sweep.folder}")


def plan(config: DictConfig, loader: ConfigLoader) -> Sweep:
    """What a multirun is going to do. Of a sweeper that goes by scores the jobs are not known beforehand."""
    folder = Path(config.hydra.sweep.dir).absolute()
    given = OmegaConf.select(config, "hydra.sweeper.params") or {}
    arguments = [*(f"{key}={value}" for key, value in given.items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    swept = dict.fromkeys(override.get_key_element() for override in overrides if override.is_sweep_override())
    planned = config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}")
    sweep = Sweep(folder, tuple(arguments), tuple(swept), planned, ())
    if not planned:
        return sweep
    (combinations,) = BasicSweeper.split_arguments(overrides, None)
    if twice := [c for c, times in Counter(map(tuple, combinations)).items() if times > 1]:
        text = f"no job was started: the sweep has {' '.join(twice[0])} twice, which would count one result as two"
        raise ProtosegError(f"{text}: name each value once")
    jobs = []
    for number, combination in enumerate(progress(combinations, "Composing the jobs")):
        job = Job(number, tuple(combination), folder)
        jobs.append(replace(job, folder=folder / compose_job(config, loader, sweep, job)))
    several = [key for key in swept if len({job.values.get(key) for job in jobs}) > 1]
    return replace(sweep, jobs=tuple(jobs), swept=tuple(several))


def compose_job(config: DictConfig, loader: ConfigLoader, sweep: Sweep, job: Job) -> str:
    """Compose a job and resolve all its values; returns its folder below the sweep's."""
    text = f"no job was started: job {job.number} of the sweep ({sweep.name(job)}) does not compose"
    with told(lambda error: f"{text}: {' '.join(error.args[0].split())}", ProtosegError), explained():
        composed = loader.load_sweep_config(config, list(job.overrides))
        with open_dict(composed):
            composed.hydra.job.num, composed.hydra.job.id = job.number, str(job.number)
            composed.hydra.runtime.output_dir = str(sweep.folder)
        with hydra_config(composed):
            own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
            check_ranges(own)
            return str(composed.hydra.sweep.subdir)


def go_on(old: Sweep, new: Sweep, unsaid: Mapping[str, str]) -> Sweep:
    """The plan ``new`` in the folder of ``old``: a job of the same settings keeps what it did, under its new number.

    ``unsaid`` are settings of jobs that do not name them. A failed job that is not in the new plan is set aside
    (``N_failed``). Raises ProtosegError, and changes nothing, where another is not in it, or a job is running.
    """
    folders = [*(job.folder for job in old.jobs), *(path.parent for path in old.folder.glob("*/job.json"))]
    begun = {_key(job, unsaid): job for folder in folders if (job := read_job(folder))}
    for job in begun.values():
        with alone_in(job.folder):
            pass
    if not new.planned and not old.planned and settings(new.arguments) == settings(old.arguments):
        return old
    dropped = [begun[key] for key in begun.keys() - {_key(job, unsaid) for job in new.jobs}]
    lost = [" ".join(job.overrides) for job in dropped if job.state != "failed"]
    if lost:
        more = f" (and {len(lost) - 1} more)" if lost[1:] else ""
        text = f"{old.folder} holds another sweep: expected its jobs {lost[0]}{more} among the new ones, got others"
        raise ProtosegError(f"{text}, and these have not failed; add to its values, or choose another hydra.sweep.dir")
    for job in dropped:
        aside = job.folder.with_name(f"{job.folder.name}_failed")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}_")
        job.folder.rename(aside)
        (aside / "job.json").rename(aside / "failed.json")
    jobs = []
    for job in new.jobs:
        did = begun.get(_key(job, unsaid), job)
        if did is not job:
            exchange(did.folder, job.folder)
            begun = {k: replace(o, folder=did.folder) if o.folder == job.folder else o for k, o in begun.items()}
            job = replace(did, number=job.number, overrides=job.overrides, folder=job.folder)
            write_job(job)
        jobs.append(job)
    return replace(new, jobs=tuple(jobs))


def _key(job: Job, unsaid: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset({**unsaid, **replace(job, overrides=tuple(settings(job.overrides))).values}.items())


def exchange(one: Path, other: Path) -> None:
    """Let two folders change names, of which the other need not exist."""
    if one == other:
        return
    aside = one.with_name(f".{one.name}.swap")  # of a kill the next start finds it
    if other.exists():
        other.rename(aside)
    other.parent.mkdir(parents=True, exist_ok=True)
    one.rename(other)
    if aside.exists():
        aside.rename(one)


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
    last, started = job.folder / "checkpoints" / "last.ckpt", time.perf_counter()
    resumed = last.is_file()
    if resumed:
        cfg.resume = str(last)
        log.info("job %d goes on from %s", job.number, visible(last))
    wandb_id = (resumed and job.wandb_id) or secrets.token_hex(8)
    if (wandb := (cfg.get("logger") or {}).get("wandb")) is not None:  # what the user has set stays
        if wandb.name == HydraConfig.get().job.name:
            wandb.name = sweep.name(job)
        wandb.group, wandb.id = wandb.group or sweep.folder.name, wandb.id or wandb_id

    def record(state: str, score: float = math.nan, error: str = "") -> None:
        if first_process():  # of several that train it
            seconds = job.seconds + time.perf_counter() - started
            write_job(replace(job, state=state, score=score, seconds=seconds, error=error, wandb_id=wandb_id))
            write_manifest(read_sweep(sweep.folder))

    record("running")
    gc.collect()  # the model of the job before hangs in reference cycles, with the memory of its device
    try:
        score = launch(cfg)
    except Exception as error:
        from protoseg.callbacks.loggers import finish_wandb  # torch, which no help waits for

        message = explain(error, "train") or f"{type(error).__name__}: {error}"
        write_text(job.folder / "error.log", traceback.format_exc())
        record("failed", error=message)
        finish_wandb(failed=True)
        log.error("job %d failed: %s", job.number, visible(f"{message} (traceback: {job.folder}/error.log)"))
        if not sweep.planned:
            raise  # Optuna's sweeper knows failures by their exception
        return math.nan
    except BaseException:  # Ctrl-C, or the cluster takes the machine away: the sweep ends
        record("stopped")
        raise
    record("done", score)
    return score


def report(ended: bool) -> int:
    """Print what came of the multirun that this process started, if it did; returns how many jobs failed."""
    global _folder
    folder, _folder = _folder, None  # told once: a notebook may go on to train something else
    if folder is None:
        return 0
    from protoseg.analysis.sweep import compare_settings, print_jobs, print_settings

    sweep, terminal = read_sweep(folder), Terminal()
    write_manifest(sweep)
    print_jobs(sweep, terminal)
    comparison = compare_settings(sweep)
    done = sum(job.state == "done" for job in sweep.jobs)
    if ended and done and len(sweep.jobs) > len(comparison.settings):
        print_settings(comparison, terminal)
    if not ended:
        again = command(override("hydra.sweep.dir", sweep.folder))
        terminal.say(f"Stopped with {done} jobs done. Go on: the same command and {again}")
    if done:
        terminal.say(f"Tables and plots: {command('protoseg', 'analyse', 'sweep', str(sweep.folder))}")
    return sum(job.state == "failed" for job in sweep.jobs)


def _states(jobs: Sequence[Job]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(job.state for job in jobs).items())


def compare(folder: Path, out: Path | None, metric: str | None) -> None:
    """Print the settings of a sweep and what is missing; write ``table.csv``, ``table.md``, ``jobs.csv``, the plots."""
    from protoseg.analysis import sweep as tables

    sweep = read_sweep(folder)
    comparison = tables.compare_settings(sweep, metric or tables.BEST)
    if not any(setting.scores for setting in comparison.settings):
        states = _states(sweep.jobs) or "none begun"
        raise ProtosegError(f"{folder}: expected at least one job with a score, got none ({states})")
    terminal = Terminal()
    tables.print_settings(comparison, terminal)
    title, without = tables.missing(sweep)
    if without:
        terminal.print(title, style="yellow")
    for line in without:
        terminal.say(f"  {line}")
    for path in tables.write_results(sweep, comparison, out or folder):
        terminal.say(f"Written: {path}")
