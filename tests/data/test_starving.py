"""Workers that starve: too little shared memory, told before the first batch, and workers that die or hang."""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from protoseg.data import AdaptationDataModule, CamVid, SegmentationDataModule, loading
from protoseg.data.dataset import Sample
from protoseg.data.loading import Loader, check_shared_memory, worker_failure
from protoseg.types import ProtosegError
from tests.data.helpers import batches


def give(monkeypatch: pytest.MonkeyPatch, free: int, place: Path) -> None:
    """Let so much shared memory be free."""
    monkeypatch.setattr(loading, "SHARED_MEMORY", place)
    monkeypatch.setattr(loading.sys, "platform", "linux")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def unasked() -> int:
    raise AssertionError("the size of a batch does not matter")


@pytest.mark.filterwarnings("error")
def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give(monkeypatch, 4_000_000, tmp_path)
    check_shared_memory(2, lambda: 1_000_000)
    check_shared_memory(0, unasked)
    with pytest.warns(UserWarning, match=r"room for 4 batches of the 2 loader .*, 1\.1 MB each, got 4\.0 MB free"):
        check_shared_memory(2, lambda: 1_100_000)
    with pytest.raises(ProtosegError, match=r"4\.1 MB each, got 4\.0 MB free: set num_workers=0 .*--shm-size=8g"):
        check_shared_memory(2, lambda: 4_100_000)
    monkeypatch.setattr(loading, "SHARED_MEMORY", tmp_path / "none")  # other systems
    check_shared_memory(2, unasked)


def test_a_batch_that_does_not_fit_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, camvid: Path
) -> None:
    def module(**options: Any) -> SegmentationDataModule:
        return SegmentationDataModule(CamVid, 2, [16, 24], root=str(camvid), **options)

    give(monkeypatch, 2 * 16 * 24 * 11 - 1, tmp_path)
    with pytest.raises(ProtosegError, match="shared memory"):
        batches(module(num_workers=1))
    assert len(batches(module(num_workers=0))) == 6
    give(monkeypatch, 3 * 32 * 24 * 11, tmp_path)
    with pytest.warns(UserWarning, match="room for 2 batches of the 1 loader processes"):
        module(num_workers=1, val_batch_size=2).val_dataloader()
    with pytest.raises(ProtosegError, match="shared memory"):
        module(num_workers=1, val_batch_size=4).val_dataloader()


class Misbehaves(Dataset[Sample]):
    """Lets something happen to the worker that reads."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        self.what()
        return Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64), "a")


def kill(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (partial(time.sleep, 2), r"gave no batch for 0\.3 seconds: .* set data\.timeout=SECONDS; .*num_workers=0"),
        (partial(kill, signal.SIGKILL), r"a loader process died \(Killed\), mostly because the memory was full"),
        (partial(kill, signal.SIGBUS), r"the loader processes ran out of shared memory .*--shm-size=8g"),
    ],
)
def test_workers_that_give_nothing(what: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch hears of a death by a handler that it sets once a process; another test may have replaced it since.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    with pytest.raises(ProtosegError, match=message) as error:
        list(Loader(Misbehaves(what), 1, 0, timeout=0.3 if what.func is time.sleep else 60))
    assert "\n" not in str(error.value)


def test_other_errors_of_workers_are_left_alone() -> None:
    def wrong() -> None:
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(Loader(Misbehaves(wrong), 1, 0))
    assert worker_failure(RuntimeError("CUDA out of memory")) is None


def test_the_timeout_is_a_setting(camvid: Path) -> None:
    options = {"batch_size": 1, "crop_size": [8, 8], "root": str(camvid)}
    assert SegmentationDataModule(CamVid, timeout=7, num_workers=1, **options).val_dataloader().timeout == 7  # type: ignore[arg-type]
    assert SegmentationDataModule(CamVid, timeout=7, num_workers=0, **options).val_dataloader().timeout == 0  # type: ignore[arg-type]
    part = partial(SegmentationDataModule, CamVid)
    pair = AdaptationDataModule(part, part, batch_size=1, crop_size=[8, 8], timeout=8)
    assert (pair.source.timeout, pair.target.timeout) == (8, 8)
