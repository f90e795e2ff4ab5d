"""``encoder.freeze``: the encoder's weights and statistics are those of the start, bit by bit; the rest learns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from protoseg.checkpoint import read_checkpoint
from protoseg.run.build import build_datamodule, build_module
from protoseg.run.train import learned_parameters, run_training
from protoseg.training.base import SegmentationModule
from protoseg.types import ProtosegError
from tests.conftest import TINY

FROZEN = (*TINY, "encoder.freeze=true", "trainer.val_check_interval=5")
ROOT = Path(__file__).parents[2]


def built(cfg: DictConfig) -> SegmentationModule:
    return build_module(cfg, build_datamodule(cfg).label_space)


@pytest.fixture
def start(configure: Callable[..., DictConfig]) -> SegmentationModule:
    return built(configure("train", *FROZEN))


def check_still(checkpoint: Path, start: SegmentationModule, networks: tuple[str, ...] = ("model.",)) -> None:
    """Ten steps have moved all that learns, and nothing of the encoder."""
    content = read_checkpoint(checkpoint)
    state, first = content["state_dict"], start.state_dict()
    assert content["global_step"] == 10
    for network in networks:
        names = [name for name in first if name.startswith("model.encoder.")]
        assert [n for n in names if not torch.equal(state[n.replace("model.", network, 1)], first[n])] == []
        rest = "head.projection.0.weight"
        assert not torch.equal(state[network + rest], first["model." + rest])


@pytest.mark.slow
def test_frozen_over_a_resume(configure: Callable[..., DictConfig], tmp_path: Path, start: SegmentationModule) -> None:
    for steps in (5, 10):
        run_training(configure("train", *FROZEN, f"trainer.max_steps={steps}", "resume=auto"))
    check_still(tmp_path / "run/checkpoints/last.ckpt", start)


@pytest.mark.slow
def test_frozen_in_adaptation_and_by_a_rate_of_zero(
    configure: Callable[..., DictConfig], tmp_path: Path, start: SegmentationModule
) -> None:
    words = [word for word in FROZEN if "freeze" not in word]
    words += ["experiment=small_dacs", "head=prototype", "optimizer.encoder_lr=0", "trainer.max_steps=10"]
    run_training(configure("train", *words, "method.alpha=0.5"))
    check_still(tmp_path / "run/checkpoints/last.ckpt", start, ("model.", "teacher.module."))


@pytest.mark.slow
def test_frozen_in_two_processes(tmp_path: Path, start: SegmentationModule) -> None:
    words = (*FROZEN, "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=10", f"hydra.run.dir={tmp_path}")
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    check_still(tmp_path / "checkpoints/last.ckpt", start)


def test_no_group_and_no_schedule_of_its_own(configure: Callable[..., DictConfig], start: SegmentationModule) -> None:
    start.train()
    assert not any(module.training for module in start.model.encoder.model.modules())
    assert start.model.head.training
    groups = start.make_optimizer(start).param_groups
    assert {group["name"] for group in groups} == {"decoder", "decoder_no_decay"}
    assert sum(p.numel() for group in groups for p in group["params"]) == learned_parameters(start)
    module = built(configure("train", *FROZEN, "optimizer.layer_decay=0.9"))
    with pytest.raises(ProtosegError, match=r"layer_decay: expected an encoder that learns.*got a frozen one"):
        module.make_optimizer(module)


def test_the_pyramid_of_a_frozen_vit_learns(configure: Callable[..., DictConfig]) -> None:
    vit = ("encoder=vit_small", "encoder.name=test_vit", "encoder.pyramid_channels=8", "encoder.pretrained=false")
    module = built(configure("train", *vit, "encoder.freeze=true"))
    learned = {name.split(".")[2] for name, p in module.named_parameters() if p.requires_grad and "encoder" in name}
    assert learned == {"pyramid"}
    rates = {group["name"]: group["lr"] for group in module.make_optimizer(module).param_groups}
    assert rates == {"decoder": 2e-3, "decoder_no_decay": 2e-3}
