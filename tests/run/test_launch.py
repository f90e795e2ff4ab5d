"""A process per device: alone, in a multirun, under torchrun and SLURM; what happens where one dies or is stopped."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing import ProcessFailure, RunProcsResult

from protoseg.checkpoint import read_checkpoint
from protoseg.run.launch import check_started, launch, requested_devices, requeue, run_name, started_processes
from protoseg.run.workers import describe
from protoseg.types import ProtosegError
from tests.conftest import SAVED, TINY
from tests.training.test_resume import assert_same_bits

ROOT = Path(__file__).parents[2]
LAST = Path("checkpoints") / "last.ckpt"
LONG = (*TINY, SAVED, "trainer.max_steps=100000", "trainer.devices=2")
"""Two workers that train until they are stopped."""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", **more}


def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def processes_of(folder: Path) -> list[int]:
    """Ids of all processes that were started with this folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in entry.read_text():
                found.append(int(entry.parent.name))
        except OSError:
            continue  # it has just ended
    return found


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start train.py with two workers that do not end by themselves; it returns once they have saved a checkpoint."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        started.append(start(*LONG, *arguments, f"hydra.run.dir={tmp_path}/run"))
        wait_until(lambda: (tmp_path / "run" / LAST).is_file() or started[-1].poll() is not None)
        assert started[-1].poll() is None, started[-1].communicate()[1]
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    wait_until(lambda: not processes_of(tmp_path / "run"), 20)


def worker_of_rank(folder: Path, rank: int) -> int:
    """Id of the worker process of a rank."""
    for process in processes_of(folder):
        content = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in content:
            return process
    raise AssertionError(f"no process of rank {rank}")


# Without starting anything


def test_devices_as_lightning_understands_them(configure: Callable[..., DictConfig]) -> None:
    cpu = "trainer.accelerator=cpu"
    assert requested_devices(configure("train", cpu)) == (1, 1)
    assert requested_devices(configure("train", cpu, "trainer.devices=3")) == (3, 1)
    assert requested_devices(configure("train", cpu, "trainer.devices='2'", "trainer.num_nodes=4")) == (2, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=500"], r"trainer\.devices: expected at most \d+ .*no GPU.*got 500"),
        (["trainer.devices=2", "trainer.accelerator=gpu"], "trainer: .*gpu"),
        (["trainer.devices=2", "trainer.strategy=fsdp", "trainer.accelerator=cpu"], "trainer: .*fsdp.*requires a GPU"),
        (["trainer.devices=2", "trainer.strategy=dpp", "trainer.accelerator=cpu"], "trainer: .*dpp"),
        (["trainer.num_nodes=2", "trainer.accelerator=cpu"], "torchrun --nnodes=2"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_starts(
    overrides: list[str], message: str, configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(ProtosegError, match=message):
        launch(configure("train", *overrides))
    assert not (tmp_path / "run").exists()


def test_processes_that_others_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_processes() is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert started_processes() is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert started_processes() == ("SLURM", 4)
    check_started("SLURM", 4, devices=2, nodes=2)
    with pytest.raises(ProtosegError, match=r"devices × num_nodes = 4, as many as SLURM has started.*got 1 × 1"):
        check_started("SLURM", 4, devices=1, nodes=1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_processes() == ("torchrun", 2)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ProtosegError, match="--rdzv-id=NAME"):
        check_started("torchrun", 2, devices=1, nodes=2)


def test_all_processes_of_a_run_find_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_name() is None
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert run_name() == f"{date.today()}_torchrun_{os.getppid()}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert re.fullmatch(r"torchrun_mine_\w{6}", run_name() or "")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    name = run_name()
    assert re.fullmatch(r"slurm_77_\w{6}", name or "")
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=2"])  # the next run of the same batch script
    assert run_name() not in (name, None)


def fake_scontrol(folder: Path) -> Path:
    """A ``scontrol`` that writes down what it is asked; its log."""
    log = folder / "scontrol.log"
    script = folder / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    script.chmod(0o755)
    return log


def test_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    log = fake_scontrol(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    requeue()
    assert not log.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert log.read_text() == "requeue 12\nrequeue 10_3\n"
    monkeypatch.setenv("PATH", "")
    requeue()
    assert "not queued again" in capsys.readouterr().err


def failed(folder: Path, **failures: tuple[int, str | None]) -> RunProcsResult:
    """An outcome of workers ``r0=(exit code, recorded message)``, …"""
    made = {}
    for rank, (exitcode, message) in enumerate(failures.values()):
        file = folder / f"{rank}.json"
        if message is not None:
            file.write_text(json.dumps({"message": {"message": message, "extraInfo": {"timestamp": "5"}}}))
        made[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file=str(file))
    return RunProcsResult(failures=made, stderrs={0: "", 1: "log of 1"})


def test_the_worker_that_failed_first_is_named(tmp_path: Path) -> None:
    message, of_input = describe(failed(tmp_path, r0=(1, "RuntimeError: connection closed"), r1=(-9, None)))
    assert not of_input
    assert message.startswith("rank 1 of 2 was killed by SIGKILL, often for want of memory, and the others")
    assert message.endswith("its log is log of 1")
    message, of_input = describe(failed(tmp_path, r0=(1, "ProtosegError: no such file"), r1=(-15, None)))
    assert (message, of_input) == ("no such file", True)
    message, of_input = describe(failed(tmp_path, r0=(1, "ValueError: wrong"), r1=(-15, None)))
    assert message.startswith("rank 0 of 2 ended with exit code 1 (ValueError: wrong)")
    assert not of_input


# With workers


@pytest.mark.slow
def test_a_rank_that_dies_stops_the_others(long_run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = long_run()
    os.kill(worker_of_rank(tmp_path / "run", 1), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("error: ") == 1
    assert "rank 1 of 2 was killed by SIGKILL" in err
    assert "Traceback" not in err
    log = re.search(r"its log is (\S+)", err)
    assert log is not None
    assert Path(log.group(1)).is_file()
    assert not processes_of(tmp_path / "run")


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_from_the_last_checkpoint(
    long_run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = long_run("max_restarts=1")
    os.kill(worker_of_rank(tmp_path / "run", 1), signal.SIGKILL)
    log = tmp_path / "run" / "logs_1" / "metrics.csv"
    wait_until(log.is_file)
    os.kill(worker_of_rank(tmp_path / "run", 1), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert "Restart 1 of 1" in err
    assert process.returncode == 1
    with open(log) as file:
        assert int(next(csv.DictReader(file))["step"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_saves_in_all_ranks_and_resumes_by_itself(signum: signal.Signals, tmp_path: Path) -> None:
    settings = (*TINY, "trainer.devices=2", "trainer.max_steps=40")
    straight = run(*settings, f"hydra.run.dir={tmp_path}/straight")
    assert straight.returncode == 0, straight.stderr
    log = fake_scontrol(tmp_path)
    slurm = {"SLURM_JOB_ID": "12", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = start(*settings, f"hydra.run.dir={tmp_path}/run", **slurm)
    wait_until(lambda: (tmp_path / "run" / "logs" / "metrics.csv").is_file())
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    step = read_checkpoint(tmp_path / "run" / LAST)["global_step"]
    assert 0 < step < 40
    assert f"Stopped after step {step}" in err
    assert "resume=auto" in err
    assert not processes_of(tmp_path / "run")
    assert (log.read_text() if log.exists() else "") == ("requeue 12\n" if signum == signal.SIGUSR1 else "")
    again = run(*settings, f"hydra.run.dir={tmp_path}/run", SLURM_RESTART_COUNT="1", **slurm)
    assert again.returncode == 0, again.stderr
    assert_same_bits(tmp_path / "straight" / LAST, tmp_path / "run" / LAST)


@pytest.mark.slow
def test_ctrl_c_and_a_killed_parent_leave_no_process(
    long_run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = long_run()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not processes_of(tmp_path / "run")
    (tmp_path / "run" / LAST).unlink()
    process = long_run("data.num_workers=1", "overwrite=true")
    process.kill()
    wait_until(lambda: not processes_of(tmp_path / "run"), 20)


@pytest.mark.slow
def test_wrong_input_of_a_worker_is_said_once(tmp_path: Path) -> None:
    result = run(
        *TINY, "trainer.devices=2", "optimizer.lr=1e6", "trainer.max_steps=50", f"hydra.run.dir={tmp_path}/run"
    )
    assert result.returncode == 1
    assert result.stderr.count("loss is not finite") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """Its processes train, find one folder, and tell where too few devices are asked for."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "train.py"), *TINY]
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    result = subprocess.run([*command, "trainer.devices=2"], **options)
    assert result.returncode == 0, result.stderr
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert read_checkpoint(checkpoint)["SegmentationDataModule"]["world_size"] == 2
    result = subprocess.run(command, **options)
    assert result.returncode == 1
    assert "expected devices × num_nodes = 2" in result.stderr


@pytest.mark.slow
def test_slurm_and_a_port_in_use(tmp_path: Path) -> None:
    """Two processes as srun starts them; then the first alone, at a port that is taken."""
    common = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "SLURM_NNODES": "1"}
    settings = (*TINY, "trainer.devices=2", f"hydra.run.dir={tmp_path}/run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run(*settings, **common, MASTER_PORT=port, SLURM_PROCID="0", SLURM_LOCALID="0")
        assert result.returncode == 1
        assert f"cannot meet at port {port}" in result.stderr
        assert "Traceback" not in result.stderr
    ranks = [start(*settings, **common, MASTER_PORT=port, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in ("0", "1")]
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    assert read_checkpoint(tmp_path / "run" / LAST)["SegmentationDataModule"]["world_size"] == 2


@pytest.mark.slow
def test_a_sweep_of_two_devices_a_job(tmp_path: Path) -> None:
    result = run(
        "-m",
        "experiment=streets_demo",
        *(setting for setting in TINY if not setting.startswith("head.num_prototypes")),
        "head.num_prototypes=1,5,10",
        "trainer.devices=2",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )
    assert result.returncode == 0, result.stderr
    for job, k in enumerate((1, 5, 10)):
        checkpoint = read_checkpoint(tmp_path / "sweep" / str(job) / LAST)
        assert checkpoint["global_step"] == 6
        assert checkpoint["SegmentationDataModule"]["world_size"] == 2
        assert checkpoint["state_dict"]["model.head.memory.prototypes"].shape[1] == k
    assert not processes_of(tmp_path / "sweep")
