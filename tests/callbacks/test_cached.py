"""``callbacks=cached``: steps on kept maps are those on the images, whatever has filled the folder, and never stale."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from protoseg.callbacks import CachedViews, Throughput
from protoseg.checkpoint import read_checkpoint
from protoseg.data.loading import Augmented
from protoseg.run.build import build_datamodule, build_module
from protoseg.run.train import run_training
from protoseg.training.base import SegmentationModule
from protoseg.types import Batch, ProtosegError
from tests.conftest import SAVED, TINY

CNN = ("encoder.name=test_efficientnet",)
VIT = ("encoder=vit_small", "encoder.name=test_vit", "encoder.pyramid_channels=8")
ROOT = Path(__file__).parents[2]
IMAGES = 8  # in training


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A frozen training on ten images; crops of no whole number of cells."""
    random = np.random.default_rng(0)
    for name, kind in [(f"{i:02}.png", kind) for i in range(10) for kind in ("images", "masks")]:
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        shape, most = ((96, 112, 3), 256) if kind == "images" else ((96, 112), 2)
        cv2.imwrite(str(tmp_path / "data" / kind / name), random.integers(0, most, shape, np.uint8))
    (tmp_path / "data/classes.yaml").write_text("classes: {road: [0, 0, 0], car: [1, 1, 1]}\nids: {road: 0, car: 1}")
    data = ["data=folder", f"data.root={tmp_path}/data", *TINY, "data.crop_size=[72,88]", "trainer.max_steps=4"]
    cached = ["callbacks=cached", "callbacks.cached.views=2", f"callbacks.cached.folder={tmp_path}/maps"]
    return [*data, *cached, "encoder.freeze=true", "trainer.val_check_interval=2"]


def filled(cfg: DictConfig) -> tuple[SegmentationModule, Any]:
    """A module and its data, as they are when a training begins, in eval mode but for no random number to differ."""
    data = build_datamodule(cfg)
    module = build_module(cfg, data.label_space).eval()
    fill(cfg, module, data)
    return module, data


def fill(cfg: DictConfig, module: SegmentationModule, data: Any) -> None:
    plugin, strategy = SimpleNamespace(forward_context=nullcontext), SimpleNamespace(barrier=lambda: None)
    trainer: Any = SimpleNamespace(datamodule=data, precision_plugin=plugin, strategy=strategy, precision="32-true")
    CachedViews(cfg.callbacks.cached.folder, cfg.callbacks.cached.views).on_fit_start(trainer, module)


@pytest.mark.parametrize("encoder", [pytest.param(CNN, marks=pytest.mark.slow, id="cnn"), pytest.param(VIT, id="vit")])
def test_maps_give_what_the_images_give(
    configure: Callable[..., DictConfig], words: list[str], encoder: tuple[str, ...]
) -> None:
    module, data = filled(configure("train", *words, *encoder, "encoder.pretrained=false"))
    kept: Batch = data.kept_views.__getitems__([(3, 1), (5, 4)])
    (third,), (fifth,) = (data.views_loader([index], 2) for index in (3, 5))
    image = torch.stack([third.image[1], fifth.image[0]])  # of two views the seeds draw the second, the first
    assert torch.equal(kept.label, torch.stack([third.label[1], fifth.label[0]]))
    assert (kept.name, kept.size.tolist()) == ([third.name[1], fifth.name[0]], [[72, 88]] * 2)
    assert not torch.equal(third.image[0], third.image[1])
    (seen, _), (through, _) = module.see(kept.image, kept.label, maps=kept.maps), module.see(image, kept.label)
    assert seen.output.features is not None
    assert through.output.features is not None
    for ours, theirs in zip(
        [seen.output.logits, *seen.output.features], [through.output.logits, *through.output.features], strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=5e-3)


class Stop(Exception):
    """Stands for a kill."""


def test_same_bits_after_a_fill_and_a_training_that_were_stopped(
    configure: Callable[..., DictConfig],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_training(configure("train", *words, output=tmp_path / "whole"))
    (folder,) = (tmp_path / "maps").iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == IMAGES
    for file in files[::2]:
        file.unlink()

    def stop(self: Throughput, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", stop)
        with pytest.raises(Stop):
            run_training(configure("train", *words, SAVED, output=tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(Augmented, "__getitem__", lambda *_: pytest.fail("a training image was opened"))
        run_training(configure("train", *words, "resume=auto", output=tmp_path / "stopped"))
    said = " ".join(capsys.readouterr().out.split())
    assert [said.count(f" {count} to be made") for count in (IMAGES, IMAGES // 2, 0)] == [1, 1, 1]
    assert f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB are written" in said
    whole, stopped = (read_checkpoint(tmp_path / run / "checkpoints/last.ckpt") for run in ("whole", "stopped"))
    assert [n for n in whole["state_dict"] if not torch.equal(whole["state_dict"][n], stopped["state_dict"][n])] == []


FLIP = "+augment.scale={_target_: albumentations.VerticalFlip}"


def test_another_folder_for_whatever_the_maps_depend_on(
    configure: Callable[..., DictConfig], words: list[str], tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    cfg = configure("train", *words)
    module, data = filled(cfg)
    (first,) = maps.iterdir()
    filled(configure("train", *words, "data.batch_size=3"))
    assert [*maps.iterdir()] == [first]

    count = 1
    for change in (
        "seed=1",
        "data.crop_size=[64,64]",
        "callbacks.cached.views=3",
        FLIP,
        f"{FLIP};data.scale=[1,1.5]",  # the transform's name hides no setting of the data
        "+encoder.mean=[0,0,0]",
    ):
        filled(configure("train", *words, *change.split(";")))
        count += 1
        assert len([*maps.iterdir()]) == count, change
    next(iter(module.model.encoder.model.parameters())).data.add_(1)
    fill(cfg, module, data)
    assert len([*maps.iterdir()]) == count + 1
    image = sorted((tmp_path / "data/images").iterdir())[0]
    os.utime(image, (0, 0))
    filled(cfg)
    (tmp_path / "data/classes.yaml").write_text("classes: {road: [0, 0, 0], car: [1, 1, 1]}\nids: {road: 1, car: 0}")
    filled(cfg)
    assert len([*maps.iterdir()]) == count + 3


REFUSED = {
    "encoder.freeze=true, numbers in float16": ("encoder.freeze=false",),
    "views that stay, and all classes annotated, got ": ("segmentor=hrda", "segmentor.detail_size=32"),
}


@pytest.mark.parametrize("expected", REFUSED)
def test_refused(configure: Callable[..., DictConfig], words: list[str], expected: str) -> None:
    with pytest.raises(ProtosegError) as caught:
        filled(configure("train", *words, *REFUSED[expected]))
    assert f"callbacks=cached: expected {expected}" in str(caught.value)


def test_adaptation_and_rare_classes_are_refused(configure: Callable[..., DictConfig], words: list[str]) -> None:
    cached = [*(word for word in words if word.startswith("callbacks")), *TINY, "encoder.freeze=true"]
    with pytest.raises(ProtosegError, match="expected views that stay"):
        filled(configure("train", "experiment=small_dacs", "data=streets_day_to_dusk", "head=prototype", *cached))
    cfg = configure("train", *words)
    data = build_datamodule(cfg)
    data.rare_classes = object()
    with pytest.raises(ProtosegError, match="expected views that stay"):
        fill(cfg, build_module(cfg, data.label_space), data)


def test_what_learns_and_what_float16_does_not_hold_is_refused(
    configure: Callable[..., DictConfig], words: list[str]
) -> None:
    cfg = configure("train", *words)
    data = build_datamodule(cfg)
    module = build_module(cfg, data.label_space)
    parameter = next(iter(module.model.encoder.model.parameters()))
    parameter.requires_grad_(True)
    with pytest.raises(ProtosegError, match="numbers in float16"):
        fill(cfg, module, data)
    parameter.requires_grad_(False)
    with torch.no_grad():
        for weight in module.model.encoder.model.parameters():
            weight *= 1e3
    with pytest.raises(ProtosegError, match="numbers in float16"):
        fill(cfg, module, data)


@pytest.mark.slow
def test_two_processes_fill_a_part_each(configure: Callable[..., DictConfig], words: list[str], tmp_path: Path) -> None:
    run = ("trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={tmp_path}/two")
    done = subprocess.run(
        [sys.executable, "train.py", *words, *run], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "maps").iterdir()
    before = {file.name: np.load(file) for file in folder.iterdir()}
    assert len(before) == IMAGES
    assert f" {IMAGES // 2} to be made" in done.stdout
    for file in folder.iterdir():
        file.unlink()
    run_training(configure("train", *words))
    for name, there in before.items():
        one = np.load(folder / name)
        for field in one.dtype.names:  # with another number of threads the last bits differ
            np.testing.assert_allclose(one[field], there[field], atol=5e-3, rtol=5e-3)


def test_a_module_that_does_not_say_how_it_sees_images_is_refused(
    configure: Callable[..., DictConfig], words: list[str]
) -> None:
    """Crop, scale and augmentation are in the key by its config alone: without, maps of others would be read."""
    cfg = configure("train", *words, *CNN, "encoder.pretrained=false")
    module, data = filled(cfg)
    module.config = None
    with pytest.raises(ProtosegError, match="expected a module with its config"):
        fill(cfg, module, data)
