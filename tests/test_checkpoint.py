"""Checkpoints are atomic, and a stranger's checkpoint cannot run code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from protoseg.checkpoint import AtomicCheckpointIO, check_targets, checkpoint_config, read_checkpoint
from protoseg.types import ProtosegError

EMPTY: dict = {"protoseg": {"config": {}, "label_space": {}}, "state_dict": {}}


@pytest.mark.parametrize(
    "target",
    [
        "protoseg.nn.PrototypeHead",
        "protoseg.training.optim.poly_schedule",
        "protoseg.data.CamVid",
        "torch.optim.AdamW",
        "torch.nn.Conv2d",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.callbacks.ModelCheckpoint",
        "segmentation_models_pytorch.Unet",
        "albumentations.HorizontalFlip",
        "torchmetrics.classification.MulticlassConfusionMatrix",
    ],
)
def test_allowed(target: str) -> None:
    check_targets({"a": {"b": [{"_target_": target}]}})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.os.system",  # a trusted prefix, another package's function
        "protoseg.checkpoint.os.remove",
        "torch.hub.load",  # fetches and runs code
        "torch.load",  # unpickles
        "torch.utils.cpp_extension.load",
        "torch.utils.cpp_extension.BuildExtension",  # a class, but nothing that a config builds
        "timm.create_model",
        "torchvision.models.resnet18",
        "hydra.utils.get_method",
        "protoseg.nothing.Here",
        "protosegment.Evil",
        "torch",
    ],
)
def test_refused(target: str) -> None:
    with pytest.raises(ProtosegError, match=r"a\.b\.0\._target_"):
        check_targets({"a": {"b": [{"_target_": target}]}})


def test_interpolations_are_refused() -> None:
    with pytest.raises(ProtosegError, match="interpolation"):
        check_targets({"data": {"root": "${oc.env:HOME}"}})


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pwned",)


def test_pickled_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"protoseg": Payload()}, "evil.ckpt")
    with pytest.raises(ProtosegError, match="refused"):
        read_checkpoint("evil.ckpt")
    assert not Path("pwned").exists()


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="no file at"):
        read_checkpoint(tmp_path / "none.ckpt")
    file = tmp_path / "text.ckpt"
    file.write_text("hello")
    with pytest.raises(ProtosegError, match="not readable"):
        read_checkpoint(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ProtosegError, match=r"train\.py"):
        read_checkpoint(file)
    with pytest.raises(ProtosegError, match="config inside"):
        checkpoint_config(file, {"protoseg": {"config": None}}, ["encoder"])


def test_truncated_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"protoseg": {}, "weights": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ProtosegError, match="damaged"):
        read_checkpoint(file)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({**EMPTY, "x": torch.ones(3)}, file)

    def full_disk(checkpoint: object, stream) -> None:  # type: ignore[no-untyped-def]
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ProtosegError, match="No space left"):
        io.save_checkpoint({"x": torch.zeros(3)}, file)
    assert io.load_checkpoint(file)["x"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_is_told_with_what_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(checkpoint: object, stream: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  as torch's own writer does

    monkeypatch.setattr(torch, "save", full_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_500_000))
    state = {"state_dict": {"a": torch.ones(1000, 1000)}, "optimizer_states": [{"b": torch.ones(250_000)}]}
    with pytest.raises(ProtosegError) as error:
        AtomicCheckpointIO().save_checkpoint(state, tmp_path / "new" / "last.ckpt")
    assert "last.ckpt: No space left on device (5.0 MB wanted, 1.5 MB free). What was written" in str(error.value)
