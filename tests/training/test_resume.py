"""A run stopped at any step and resumed ends with the same bits as one that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from protoseg.callbacks import Throughput
from protoseg.checkpoint import read_checkpoint
from protoseg.cli.training import run_training
from protoseg.metrics import SegmentationMetrics
from protoseg.types import ProtosegError
from tests.conftest import TINY


def constant_schedule(optimizer: torch.optim.Optimizer, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that does not know where the training ends, so that an extended run can equal a longer one."""
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


class Stop(Exception):
    """Stands for a kill: nothing is saved after it."""


@contextmanager
def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int, hook: str) -> Iterator[None]:
    """Raise in a callback hook once ``step`` optimizer steps are done; swallow it outside."""

    def raising(self: Throughput, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, hook, raising)
        with pytest.raises(Stop):
            yield


def tensors(node: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield prefix, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{prefix}.{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from tensors(value, f"{prefix}.{i}")


def assert_same_bits(left: Path, right: Path) -> None:
    ours, theirs = read_checkpoint(left), read_checkpoint(right)
    for key in ("state_dict", "optimizer_states"):
        a, b = dict(tensors(ours[key])), dict(tensors(theirs[key]))
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert ours["global_step"] == theirs["global_step"]
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]


def validations(run: Path) -> dict[str, str]:
    import csv

    with open(run / "logs" / "metrics.csv") as file:
        return {row["step"]: row["val/mIoU"] for row in csv.DictReader(file) if row["val/mIoU"]}


def assert_resumes(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    step: int,
    hook: str,
) -> None:
    """Train straight, then stop at ``step`` and resume: the same bits."""
    run_training(configure("train", *settings, output=tmp_path / "straight"))
    with stopped_at(monkeypatch, step, hook):
        run_training(configure("train", *settings, output=tmp_path / "stopped"))
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == step
    run_training(configure("train", *settings, f"resume={last}", output=tmp_path / "resumed"))
    name = Path("checkpoints") / "last.ckpt"
    assert_same_bits(tmp_path / "straight" / name, tmp_path / "resumed" / name)


EXTRA = ("head.assignment=gumbel", "decoder.dropout=0.2", "+encoder.drop_path_rate=0.2", "data.num_workers=1")


@pytest.mark.parametrize(
    ("step", "hook"),
    [(1, "on_train_batch_start"), (3, "on_validation_start"), (3, "on_validation_end"), (4, "on_train_batch_start")],
)
def test_stopped_and_resumed_is_never_stopped(
    step: int, hook: str, configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumes(configure, tmp_path, monkeypatch, (*TINY, *EXTRA), step, hook)
    expected = validations(tmp_path / "straight")
    resumed = validations(tmp_path / "resumed")
    assert resumed["5"] == expected["5"]
    assert resumed.items() <= expected.items()


def test_gradient_accumulation_resumes_too(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*TINY, "trainer.accumulate_grad_batches=2", "trainer.max_steps=4", "trainer.val_check_interval=8")
    assert_resumes(configure, tmp_path, monkeypatch, overrides, 2, "on_train_batch_start")


def test_twice_the_same_seed_is_the_same_run_whatever_the_workers(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    for workers in (0, 2):
        run_training(configure("train", *TINY, f"data.num_workers={workers}", output=tmp_path / str(workers)))
    name = Path("checkpoints") / "last.ckpt"
    assert_same_bits(tmp_path / "0" / name, tmp_path / "2" / name)


def test_resume_with_another_batch_size_or_other_classes_is_refused(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match="batch_size"):
        run_training(configure("train", *TINY, f"resume={last}", "data.batch_size=3", output=tmp_path / "b"))
    with pytest.raises(ProtosegError, match="11 classes"):
        run_training(configure("train", *TINY, "data=cityscapes", f"resume={last}", output=tmp_path / "c"))


def test_a_resumed_run_remembers_its_best_score(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.4, 0.3])  # the peak is before the stop
    original = SegmentationMetrics.compute
    monkeypatch.setattr(SegmentationMetrics, "compute", lambda self: {**original(self), "mIoU": next(scores)})
    overrides = (*TINY, "trainer.val_check_interval=2")
    with stopped_at(monkeypatch, 3, "on_train_batch_start"):
        run_training(configure("train", *overrides, output=tmp_path / "stopped"))
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    best = run_training(configure("train", *overrides, f"resume={last}", output=tmp_path / "resumed"))
    assert best == pytest.approx(0.5)
    assert not (tmp_path / "resumed" / "checkpoints" / "best.ckpt").exists()
    assert (tmp_path / "stopped" / "checkpoints" / "best.ckpt").exists()


def test_a_finished_run_can_be_extended(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    def run(name: str, *overrides: str) -> Path:
        cfg = configure("train", *TINY, "trainer.val_check_interval=2", *overrides, output=tmp_path / name)
        cfg.schedule = {"_target_": f"{__name__}.constant_schedule"}
        run_training(cfg)
        return tmp_path / name / "checkpoints" / "last.ckpt"

    whole = run("whole", "trainer.max_steps=7")
    first = run("first", "trainer.max_steps=4")
    extended = run("extended", "trainer.max_steps=7", f"resume={first}")
    assert_same_bits(whole, extended)
    assert read_checkpoint(extended)["SegmentationDataModule"]["batches"] == 7
    assert "6" in validations(tmp_path / "extended")  # the last step is judged


def test_an_earlier_log_in_the_same_folder_is_kept(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    for _ in range(2):
        run_training(configure("train", *TINY, "trainer.max_steps=1"))
    assert (tmp_path / "run" / "logs" / "metrics.csv").is_file()
    assert (tmp_path / "run" / "logs_1" / "metrics.csv").is_file()


def test_resume_with_another_model_is_one_clear_error(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match=r"does not fit this model.*memory\.prototypes"):
        run_training(configure("train", *TINY, "head.num_prototypes=3", f"resume={last}", output=tmp_path / "other"))
