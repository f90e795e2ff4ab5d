"""A run that is asked to stop saves, ends, and goes on as if it had never been stopped."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig

from protoseg.callbacks import Throughput
from protoseg.callbacks.checkpoint import Stopped, StopRequest
from protoseg.checkpoint import read_checkpoint
from protoseg.evaluation.curves import read_log
from protoseg.files import write_file
from protoseg.run.train import checkpoint_to_resume, run_training
from protoseg.types import ProtosegError
from tests.conftest import SAVED, TINY
from tests.training.test_resume import assert_same_bits

LAST, BEST = (Path("checkpoints") / f"{name}.ckpt" for name in ("last", "best"))


@contextmanager
def signalled_at(monkeypatch: pytest.MonkeyPatch, signum: int, step: int, hook: str) -> Iterator[None]:
    """Send this process a signal in a callback hook once ``step`` optimizer steps are done."""

    def signalling(self: Throughput, trainer: pl.Trainer, *rest: Any, **named: Any) -> None:
        if trainer.global_step == step and not trainer.sanity_checking:
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, hook, signalling)
        with pytest.raises(Stopped) as stopped:
            yield
        assert stopped.value.code == 128 + signum


def logged(folder: Path) -> dict[int, dict[str, str]]:
    """What a run has logged, by step; without its speed, and without epochs, of which it has none."""
    rows = {int(row["step"]): row for row in read_log(folder)}
    unlike = ("train/images_per_s", "epoch")
    return {step: {k: v for k, v in row.items() if v and k not in unlike} for step, row in rows.items()}


@pytest.mark.slow
def test_stopped_in_training_and_in_validation_and_resumed_is_never_stopped(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (*TINY, "resume=auto", "trainer.limit_val_batches=3", "head.assignment=gumbel")
    stopped = configure("train", *settings, output=tmp_path / "stopped")
    best = run_training(configure("train", *settings, output=tmp_path / "straight"))
    for signum, step, hook, saved in (
        (signal.SIGTERM, 1, "on_train_batch_start", 2),
        (signal.SIGUSR1, 3, "on_validation_batch_start", 3),
        (signal.SIGUSR1, 6, "on_validation_batch_end", 6),
    ):
        with signalled_at(monkeypatch, signum, step, hook):
            run_training(stopped)
        assert f"Stopped after step {saved}" in capsys.readouterr().err
        assert read_checkpoint(tmp_path / "stopped" / LAST)["global_step"] == saved
    assert run_training(stopped) == pytest.approx(best, abs=0)
    for name in (LAST, BEST):  # the best was judged after a resume, before any step
        assert_same_bits(tmp_path / "straight" / name, tmp_path / "stopped" / name)
    assert logged(tmp_path / "straight") == logged(tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_stop_waits_for_the_whole_gradient(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*TINY, "trainer.accumulate_grad_batches=2", "trainer.max_steps=2", "trainer.val_check_interval=4")
    with signalled_at(monkeypatch, signal.SIGTERM, 0, "on_train_batch_start"):
        run_training(configure("train", *settings, output=tmp_path / "stopped"))
    checkpoint = read_checkpoint(tmp_path / "stopped" / LAST)
    assert (checkpoint["global_step"], checkpoint["SegmentationDataModule"]["batches"]) == (1, 2)


def test_a_stop_before_the_first_step_saves_nothing(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signalled_at(monkeypatch, signal.SIGTERM, 0, "setup"):
        run_training(configure("train", *TINY))
    assert not (tmp_path / "run" / LAST).exists()


def test_ctrl_c_ends_the_training_and_works_again_after_it(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with signalled_at(monkeypatch, signal.SIGINT, 1, "on_train_batch_start"):
        run_training(configure("train", *TINY, SAVED))
    assert "Stopped after step 1; last checkpoint" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_what_a_kill_left_half_written_is_removed(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"

    def killed(partial: Path) -> None:
        partial.write_text("half of it")
        shutil.copy(partial, tmp_path / partial.name)  # write_file removes its own

    write_file(checkpoints / "last.ckpt", killed)
    (left,) = tmp_path.glob(".last*")
    left.rename(checkpoints / left.name)
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    assert sorted(os.listdir(checkpoints)) == ["best.ckpt", "last.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self: Throughput, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == 2:  # from here on the system refuses files of this size
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    monkeypatch.setattr(Throughput, "on_train_batch_start", fill)
    try:
        with pytest.raises(ProtosegError, match=r"cannot write .*last\.ckpt.*written before is kept; free space"):
            run_training(configure("train", *TINY, SAVED))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(tmp_path / "run" / LAST)["global_step"] == 2
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "adaptation"])
def test_kills(method: str) -> None:
    command = [sys.executable, "tests/kills.py", "--kills", "3", "--method", method]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3/3 kills resumed to the same end" in result.stdout


def test_the_first_signal_is_kept_and_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("resume", "counts", "exists", "expected"),
    [
        (None, {}, True, None),
        ("other.ckpt", {}, True, "other.ckpt"),
        ("auto", {}, True, "last.ckpt"),
        ("auto", {}, False, None),
        (None, {"SLURM_RESTART_COUNT": "0"}, True, None),
        (None, {"SLURM_RESTART_COUNT": "1"}, True, "last.ckpt"),
        ("other.ckpt", {"SLURM_RESTART_COUNT": "2"}, True, "last.ckpt"),
        ("other.ckpt", {"SLURM_RESTART_COUNT": "1"}, False, "other.ckpt"),
        (None, {"TORCHELASTIC_RESTART_COUNT": "1"}, True, "last.ckpt"),
    ],
)
def test_what_a_run_resumes_from(
    resume: str | None,
    counts: dict[str, str],
    exists: bool,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in counts.items():
        monkeypatch.setenv(name, count)
    if exists:
        Path("last.ckpt").touch()
    assert checkpoint_to_resume(resume, Path("last.ckpt")) == expected
