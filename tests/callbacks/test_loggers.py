"""What a dashboard needs arrives in wandb (offline) and TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from protoseg.callbacks.loggers import wandb_logger
from protoseg.callbacks.prototype_memory import memory_statistics
from protoseg.cli.training import run_training
from protoseg.nn import PrototypeMemory
from tests.conftest import TINY

SHORT = (*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.limit_val_batches=2")


def test_wandb_offline_without_a_key(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_training(configure("train", *SHORT, "logger=wandb"))
    assert wandb.run is None  # finished, so that the next job of a sweep starts its own
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    media = {path.relative_to(folder / "files" / "media").parts[:3] for path in folder.rglob("media/**/*.*")}
    names = {"/".join(parts) for parts in media}
    assert any("images/val" in name for name in names)
    assert any("images/prototypes" in name for name in names)
    assert any("table/val" in name for name in names)


def test_wandb_is_online_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_logger(save_dir=tmp_path)._offline is False
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_logger(save_dir=tmp_path)._offline is False
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_logger(save_dir=tmp_path)._offline is True


def test_tensorboard(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(configure("train", *SHORT, "logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()
    assert {"val/mIoU", "train/loss", "prototypes/diversity"} <= set(events["scalars"])
    assert {"val/predictions", "prototypes/occupancy", "prototypes/similarity"} <= set(events["images"])
    assert "val/per_class_IoU/text_summary" in events["tensors"]


def test_memory_statistics_by_hand() -> None:
    memory = PrototypeMemory(3, 2, 4)
    memory.occupancy.copy_(memory.occupancy.new_tensor([[5, 5], [8, 0], [0, 0]]))
    statistics = memory_statistics(memory)
    assert float(statistics["prototypes/moved"]) == pytest.approx(3 / 6)
    assert float(statistics["prototypes/balance"]) == pytest.approx(0.5)  # of the two classes seen: 1 and 0
    assert float(statistics["prototypes/diversity"]) == pytest.approx(float(memory.diversity().mean()))
    assert set(memory_statistics(PrototypeMemory(3, 1, 4))) == {"prototypes/moved"}
