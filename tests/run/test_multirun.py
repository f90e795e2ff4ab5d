"""A multirun: planned and composed before it starts, continued where it was stopped, every job accounted for."""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from protoseg.checkpoint import read_checkpoint
from protoseg.job_records import Job, Sweep, read_sweep, write_job
from protoseg.run import multirun as engine
from protoseg.run.config import CONFIG_DIR, explain
from protoseg.types import ProtosegError
from tests.conftest import SAVED, TINY

ROOT = Path(__file__).parents[2]
SHORT = (*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2", "threads=1")
Multirun = Callable[..., DictConfig]


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Multirun]:
    """``multirun(*overrides)``: the config that Hydra composes before a multirun into ``tmp_path/sweep``."""
    monkeypatch.setattr(engine, "_folder", None)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra

        def compose(*overrides: str) -> DictConfig:
            GlobalHydra.instance().hydra = hydra  # telling the nearest names composes anew
            every = [*overrides, f"hydra.sweep.dir={tmp_path}/sweep", "hydra.mode=MULTIRUN"]
            return hydra.compose_config("train", every, run_mode=RunMode.MULTIRUN, from_shell=False)

        yield compose


def started(config: DictConfig) -> Sweep:
    engine.start(config)
    return read_sweep(Path(config.hydra.sweep.dir))


@pytest.mark.slow
def test_every_combination_is_planned(multirun: Multirun, tmp_path: Path) -> None:
    sweep = started(multirun("sweep=num_prototypes", "head.logits=layernorm", "seed=range(2)"))
    assert sweep.swept == ("head.num_prototypes", "seed")
    assert len(sweep.jobs) == 10
    assert sweep.jobs[3].overrides == (
        "head.num_prototypes=5", "sweep=num_prototypes", "head.logits=layernorm", "seed=1"
    )  # fmt: skip
    assert sweep.jobs[3].folder == tmp_path / "sweep" / "3"
    assert sweep.name(sweep.jobs[3]) == "num_prototypes=5 seed=1"
    assert {job.state for job in sweep.jobs} == {"waiting"}


def test_a_combination_given_twice_is_refused(multirun: Multirun, tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match=r"no job was started: the sweep has .*seed=0.* twice"):
        engine.start(multirun("seed=0,1,0"))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [("head=prototype,prototyp", "Did you mean 'prototype'"), ("optimizer.lrr=1,2", "'optimizer.lr'")],
)
def test_what_does_not_compose_is_said_before_any_job(
    override: str, expected: str, multirun: Multirun, tmp_path: Path
) -> None:
    with pytest.raises(ProtosegError, match=r"no job was started: job \d of the sweep .*does not compose") as error:
        engine.start(multirun("seed=0", override))
    assert expected in str(error.value)
    assert not (tmp_path / "sweep").exists()


def finish(job: Job, state: str = "done") -> None:
    """As if the job had run, and left a file that says which it was."""
    write_job(replace(job, state=state, score=job.number / 10 if state == "done" else math.nan))
    (job.folder / "which.txt").write_text(" ".join(job.overrides))


def found(sweep: Sweep) -> dict[str, str]:
    """The state of each job by its overrides; a job that ran lies in its own folder."""
    for job in sweep.jobs:
        assert job.folder == sweep.folder / str(job.number)
        if job.state != "waiting":
            assert {*(job.folder / "which.txt").read_text().split()} == {*job.overrides} - {"launcher=local"}
    return {" ".join(job.overrides): job.state for job in sweep.jobs}


def test_a_sweep_that_grows_keeps_its_jobs(multirun: Multirun) -> None:
    first = started(multirun("head.num_prototypes=1,5", "seed=0,1"))
    for job, state in zip(first.jobs, ("done", "done", "stopped", "failed"), strict=True):
        finish(job, state)
    grown = started(multirun("launcher=local", "head.num_prototypes=5,1", "seed=2,1,0"))
    states = found(grown)
    assert len(states) == 6
    assert states["launcher=local head.num_prototypes=1 seed=0"] == "done"
    assert states["launcher=local head.num_prototypes=1 seed=1"] == "done"
    assert states["launcher=local head.num_prototypes=5 seed=0"] == "stopped"
    assert states["launcher=local head.num_prototypes=5 seed=1"] == "failed"
    assert [*states.values()].count("waiting") == 2
    assert {job.score for job in grown.jobs if job.state == "done"} == {0.0, 0.1}


@pytest.mark.slow
def test_seeds_added_to_a_sweep_that_named_none(multirun: Multirun) -> None:
    finish(started(multirun("head.num_prototypes=1,5")).jobs[0])
    with pytest.raises(ProtosegError, match="holds another sweep"):
        engine.start(multirun("head.num_prototypes=1,5", "seed=1,2"))
    grown = started(multirun("head.num_prototypes=1,5", "seed=0,1"))
    assert [job.overrides for job in grown.jobs if job.state == "done"] == [("head.num_prototypes=1", "seed=0")]
    assert len(grown.jobs) == 4


@pytest.mark.slow
def test_a_result_is_not_given_up(multirun: Multirun, tmp_path: Path) -> None:
    first = started(multirun("head.num_prototypes=1,2", "threads=1"))
    finish(first.jobs[0])
    before = sorted(tmp_path.rglob("*"))
    for other in (("head.num_prototypes=2,3", "threads=1"), ("head.num_prototypes=1,2", "threads=2")):
        with pytest.raises(
            ProtosegError, match=r"another sweep: expected its jobs head\.num_prototypes=1 threads=1 among"
        ):
            engine.start(multirun(*other))
    assert {*tmp_path.rglob("*")} - {*before} <= {first.jobs[0].folder / "job.lock"}
    assert [*found(started(multirun("head.num_prototypes=1,3", "threads=1"))).values()] == ["done", "waiting"]


def test_a_corrected_command_goes_on_where_all_failed(multirun: Multirun, tmp_path: Path) -> None:
    first = started(multirun("head.num_prototypes=1,2", "optimizer.lr=5"))
    for job in first.jobs:
        finish(job, "failed")
    again = started(multirun("head.num_prototypes=1,2", "optimizer.lr=0.01"))
    assert [*found(again).values()] == ["waiting"] * 2
    assert not again.jobs[0].folder.exists()
    assert (tmp_path / "sweep" / "1_failed" / "which.txt").is_file()


def test_a_value_of_every_swept_choice(multirun: Multirun, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["contrast=pgpc,u2pl", "contrast.temperature=0.1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
    with pytest.raises(Exception) as error:  # noqa: PT011 - Hydra's
        multirun(*words)
    message = explain(error.value, "train") or ""
    assert message.startswith("contrast.temperature: expected to be of every choice swept beside it")
    (remedy,) = shlex.split(message.rpartition("write ")[2])
    sweep = started(multirun(words[0], remedy))
    assert sweep.swept == ("contrast",)
    assert [job.overrides[1] for job in sweep.jobs] == ["contrast.temperature=0.1"] * 2


def test_results_of_something_else_are_left_alone(multirun: Multirun, tmp_path: Path) -> None:
    (tmp_path / "sweep" / "1").mkdir(parents=True)
    with pytest.raises(ProtosegError, match=r"sweep/1 exists"):
        engine.start(multirun("seed=0,1"))


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2", "RANK": "0"}, {"SLURM_PROCID": "1"}])
def test_several_processes_do_not_run_one_sweep(
    environment: dict[str, str], multirun: Multirun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProtosegError, match="without torchrun or srun"):
        engine.start(multirun("seed=0,1"))


def test_an_own_error_in_the_hook_ends_the_program(multirun: Multirun, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        engine.SweepCallback().on_multirun_start(multirun("head=nosuch,prototype"))
    assert end.value.code == 1
    assert "unknown head 'nosuch'" in capsys.readouterr().err


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "-m", *SHORT, *arguments]


def states(folder: Path) -> list[str]:
    return [job.state for job in read_sweep(folder).jobs]


@pytest.mark.slow
def test_one_failing_job_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ("head.logits=wrong,temperature", f"hydra.sweep.dir={tmp_path}/ablation", "logger=wandb")
    tmp_path /= "ablation"
    result = train(*arguments)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert states(tmp_path) == ["failed", "done"]
    assert "Job 0 failed: prototype head: expected logits in" in result.stdout.replace("\n", "")
    assert "ProtosegError" in (tmp_path / "0" / "error.log").read_text()
    score = read_sweep(tmp_path).jobs[1].score
    assert f"{100 * score:.1f}" in result.stdout
    (record,) = tmp_path.glob("1/wandb/offline-run-*/*.wandb")
    assert b"\x08ablation" in record.read_bytes()  # the group, a string of 8 letters
    assert b"logits=temperature" in record.read_bytes()


def tensors(folder: Path, job: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / str(job) / "checkpoints" / "last.ckpt")["state_dict"]


def assert_same_jobs(folder: Path, other: Path) -> None:
    for mine, theirs in zip(read_sweep(folder).jobs, read_sweep(other).jobs, strict=True):
        assert (mine.overrides, mine.score) == (theirs.overrides, theirs.score)
        ours, others = tensors(folder, mine.number), tensors(other, theirs.number)
        assert all(torch.equal(ours[name], others[name]) for name in ours | others)


LONG = (SAVED, "head.num_prototypes=1,3,5", "trainer.max_steps=30", "trainer.val_check_interval=10")


def end_in_job(number: int, arguments: tuple[str, ...], folder: Path, signum: signal.Signals) -> int:
    """Start a sweep, and send it a signal once the job trains; returns the exit code."""
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 200
        while not (folder / str(number) / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(process.pid, signum)
        return process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_a_killed_sweep_continues_as_if_never_killed(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(*LONG, f"hydra.sweep.dir={straight}").returncode == 0
    again = (*LONG, f"hydra.sweep.dir={killed}")
    assert end_in_job(1, again, killed, signal.SIGKILL) == -signal.SIGKILL
    assert states(killed) == ["done", "running", "waiting"]
    first = (killed / "0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert end_in_job(2, again, killed, signal.SIGINT) == 130
    assert states(killed) == ["done", "done", "stopped"]
    result = train(*again)
    assert result.returncode == 0, result.stderr
    assert "job 0 is done already: skipped" in result.stdout
    assert "job 2 goes on from" in result.stdout
    assert states(killed) == ["done"] * 3
    assert (killed / "0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == first
    assert_same_jobs(straight, killed)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib"])
def test_jobs_at_the_same_time(launcher: str, tmp_path: Path) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher"
    if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(plugin) is None:
        pytest.skip(f"{plugin} is not installed")
    arguments = ("head.logits=wrong,temperature", "seed=0,1")
    one, many = tmp_path / "one", tmp_path / "many"
    for folder, chosen in ((one, "local"), (many, launcher)):
        result = train(*arguments, f"launcher={chosen}", f"hydra.sweep.dir={folder}")
        assert result.returncode == 1, result.stderr
        assert states(folder) == ["failed", "failed", "done", "done"]
        assert "Job 1 failed" in result.stdout
    scores = [[job.score for job in read_sweep(folder).jobs[2:]] for folder in (one, many)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_search_continues_with_the_same_jobs(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    search = ("sweep=optuna", "head.logits=wrong,temperature")
    assert train(*search, "hydra.sweeper.n_trials=5", f"hydra.sweep.dir={straight}").returncode == 1
    assert train(*search, "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={stopped}").returncode == 1
    shutil.rmtree(stopped / "2")
    result = train(*search, "hydra.sweeper.n_trials=5", f"hydra.sweep.dir={stopped}")
    found, expected = read_sweep(stopped).jobs, read_sweep(straight).jobs
    assert [(job.overrides, job.state, str(job.score)) for job in found] == [
        (job.overrides, job.state, str(job.score)) for job in expected
    ], result.stderr
    assert {job.state for job in found} == {"failed", "done"}
