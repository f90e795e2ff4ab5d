"""What a job of a sweep does is decided by its folder: skipped, resumed, run again; and its end is recorded."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from protoseg.job_records import Job, Sweep, alone_in, read_job, read_sweep, short_names, write_job, write_manifest
from protoseg.run import multirun
from protoseg.run.config import CONFIG_DIR
from protoseg.types import ProtosegError

OVERRIDES = ("head.num_prototypes=5", "seed=1", "logger=wandb")


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Job 3 of a sweep of four, waiting."""
    one = Job(3, OVERRIDES, tmp_path / "sweep" / "3")
    others = (Job(i, (f"head.num_prototypes={i}", "seed=1"), tmp_path / "sweep" / str(i)) for i in range(3))
    arguments = ("head.num_prototypes=0,1,2,5", "seed=1,2")
    write_manifest(Sweep(tmp_path / "sweep", arguments, ("head.num_prototypes", "seed"), True, (*others, one)))
    yield one
    HydraConfig.instance().cfg = None


def config_of(job: Job, mode: str = "MULTIRUN") -> DictConfig:
    """What Hydra hands to the task of the job."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = [*job.overrides, f"hydra.mode={mode}", f"hydra.sweep.dir={job.folder.parent}"]
        cfg = compose("train", overrides, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.job.num = job.number
        cfg.hydra.runtime.output_dir = str(job.folder)
    HydraConfig.instance().set_config(cfg)
    task = cfg.copy()
    with open_dict(task):
        del task["hydra"]
    return task


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Run a job, with a function in place of the training."""

    def run_job(job: Job, training: Callable[[DictConfig], float], mode: str = "MULTIRUN") -> float:
        monkeypatch.setattr(multirun, "launch", training)
        return multirun.run_job(config_of(job, mode))

    return run_job


def unexpected(cfg: DictConfig) -> float:
    raise AssertionError("was trained")


def test_a_new_job_is_trained_and_recorded(job: Job, run: Callable[..., float]) -> None:
    def training(cfg: DictConfig) -> float:
        assert cfg.resume is None
        assert cfg.paths.output == str(job.folder)
        assert read_job(job.folder).state == "running"
        return 0.625

    assert run(job, training) == 0.625
    sweep = read_sweep(job.folder.parent)
    assert [(j.state, j.score) for j in sweep.jobs if j.number == 3] == [("done", 0.625)]
    assert [j.state for j in sweep.jobs] == ["waiting"] * 3 + ["done"]
    assert '"state": "done"' in (sweep.folder / "manifest.json").read_text()


def test_a_finished_job_is_skipped(job: Job, run: Callable[..., float]) -> None:
    run(job, lambda cfg: 0.1 + 0.2)
    assert run(job, unexpected) == 0.1 + 0.2  # to the last bit: a search goes by it


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_job_that_was_begun_resumes(state: str, job: Job, run: Callable[..., float]) -> None:
    last = job.folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    write_job(Job(3, OVERRIDES, job.folder, state, seconds=100.0, error="disk full", wandb_id="abc"))

    def training(cfg: DictConfig) -> float:
        assert cfg.resume == str(last)
        assert cfg.logger.wandb.id == "abc"
        return 0.5

    assert run(job, training) == 0.5
    done = read_job(job.folder)
    assert (done.state, done.error) == ("done", "")
    assert 100 <= done.seconds < 110


def test_a_failure_is_recorded_and_the_job_runs_again(job: Job, run: Callable[..., float]) -> None:
    def failing(cfg: DictConfig) -> float:
        raise ProtosegError("no such file")

    assert math.isnan(run(job, failing))
    failed = read_job(job.folder)
    assert (failed.state, failed.error) == ("failed", "no such file")
    assert "in failing" in (job.folder / "error.log").read_text()
    assert run(job, lambda cfg: 0.5) == 0.5
    assert read_job(job.folder).error == ""


def test_a_failure_of_the_program_is_recorded_too(job: Job, run: Callable[..., float]) -> None:
    assert math.isnan(run(job, lambda cfg: 1 / 0))
    assert read_job(job.folder).error == "ZeroDivisionError: division by zero"


def test_a_search_is_told_of_failures_and_keeps_them(job: Job, run: Callable[..., float]) -> None:
    sweep = read_sweep(job.folder.parent)
    write_manifest(Sweep(sweep.folder, sweep.arguments, sweep.swept, False, ()))
    with pytest.raises(ZeroDivisionError):
        run(job, lambda cfg: 1 / 0)
    with pytest.raises(ProtosegError, match="failed before"):
        run(job, unexpected)
    assert [found.number for found in read_sweep(sweep.folder).jobs] == [3]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_a_stop_is_recorded_and_ends_the_sweep(stop: BaseException, job: Job, run: Callable[..., float]) -> None:
    def stopping(cfg: DictConfig) -> float:
        raise stop

    with pytest.raises(type(stop)):
        run(job, stopping)
    assert read_job(job.folder).state == "stopped"


def test_alone_a_failure_is_raised_and_nothing_is_recorded(job: Job, run: Callable[..., float]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(job, lambda cfg: 1 / 0, mode="RUN")
    assert not job.folder.exists()


def test_another_job_in_the_folder_is_refused(job: Job, run: Callable[..., float]) -> None:
    run(job, lambda cfg: 0.5)
    assert run(Job(3, (*OVERRIDES, "launcher=local"), job.folder), unexpected) == 0.5  # the same, started otherwise
    with pytest.raises(ProtosegError, match="seed=2"):
        run(Job(3, ("head.num_prototypes=5", "seed=2"), job.folder), unexpected)


def test_of_several_processes_the_first_keeps_the_record(
    job: Job, run: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(job, lambda cfg: 0.5) == 0.5
    assert not job.folder.exists()


def test_runs_on_wandb_are_grouped_and_named(job: Job, run: Callable[..., float]) -> None:
    names = {}

    def training(cfg: DictConfig) -> float:
        names.update({key: cfg.logger.wandb[key] for key in ("name", "group", "id")})
        return 0.5

    run(job, training)
    assert (names["name"], names["group"]) == ("num_prototypes=5 seed=1", "sweep")
    assert names["id"] == read_job(job.folder).wandb_id
    own = Job(
        3, ("seed=1", "logger=wandb", "logger.wandb.name=mine", "logger.wandb.group=ours"), job.folder.parent / "4"
    )
    run(own, training)
    assert (names["name"], names["group"]) == ("mine", "ours")


def test_a_job_runs_once_at_a_time_and_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from protoseg.job_records import alone_in
with alone_in(Path({str(tmp_path)!r})):
    child = os.fork()  # as a data loader's worker, which outlives its parent for some seconds
    print(child or "", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(2)]
    with pytest.raises(ProtosegError, match="another process"), alone_in(tmp_path):
        pass
    process.kill()
    process.wait()
    with alone_in(tmp_path):
        os.kill(int("".join(lines)), signal.SIGKILL)  # the worker was still there


@pytest.mark.slow
def test_without_what_windows_lacks(tmp_path: Path) -> None:
    code = f"""
import signal, sys, types
import pytorch_lightning, torch
taken = set()
def locking(file, mode, size):
    if taken:
        raise PermissionError(13, "Permission denied")
    taken.add(file)
sys.modules["fcntl"] = None
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
del signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.alarm
import protoseg.run.evaluate, protoseg.run.launch, protoseg.run.train, protoseg.run.workers
from pathlib import Path
from protoseg.callbacks.checkpoint import StopRequest
from protoseg.job_records import alone_in
from protoseg.types import ProtosegError
with StopRequest() as request, alone_in(Path({str(tmp_path)!r})):
    assert request.signals == (signal.SIGTERM,)
    try:
        with alone_in(Path({str(tmp_path)!r})):
            raise AssertionError
    except ProtosegError as error:
        assert "another process is training there" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_of_columns_are_distinct() -> None:
    names = short_names(("head.temperature", "contrast.temperature", "encoder.mean", "+optimizer.lr", "seed"))
    assert [*names.values()] == ["head.temperature", "contrast.temperature", "encoder.mean", "lr", "seed"]


def test_a_damaged_record_is_one_clear_error(job: Job, run: Callable[..., float]) -> None:
    run(job, lambda cfg: 0.5)
    for text in ("{", "[]", '{"number": 3}'):
        (job.folder / "job.json").write_text(text)
        with pytest.raises(ProtosegError, match=r"job\.json is damaged"):
            run(job, unexpected)
