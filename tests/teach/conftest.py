"""A checkpoint of random weights, and pictures of coloured patches with masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.data import CAMVID, Streets
from protoseg.run.build import build_module
from protoseg.teach import with_statistics
from protoseg.trained import TrainedFile
from tests.conftest import TINY

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make_checkpoint(configure: Callable[..., DictConfig], tmp_path: Path) -> MakeCheckpoint:
    """``make_checkpoint(*overrides)``: the file of an untrained run."""

    def make(*overrides: str, name: str = "base") -> Path:
        tiny = [o for o in TINY if not o.startswith("head.") or not any(o.startswith("head=") for o in overrides)]
        module = build_module(configure("train", *tiny, *overrides), CAMVID)
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        path = tmp_path / f"{name}.ckpt"
        save_checkpoint(checkpoint, path)
        return path

    return make


def with_scenes(path: Path) -> TrainedFile:
    """A checkpoint with statistics of four of the built-in scenes, and label sets of every second one of three."""
    scenes, others = Streets(split="train"), Streets(split="val")
    scenes.samples, others.samples = scenes.samples[:4], others.samples[:3]
    return with_statistics(TrainedFile(path, read_checkpoint(path)), scenes, held_out=others)


_base: list[bytes] = []  # the file of the fixture below, made once


@pytest.fixture
def base(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """An untrained run with statistics."""
    if not _base:
        path = make_checkpoint()
        save_checkpoint(with_scenes(path).content, path)
        _base.append(path.read_bytes())
    torch.manual_seed(0)  # the test is the same whether the file was made for it or not
    path = tmp_path / "base.ckpt"
    path.write_bytes(_base[0])
    return path


@pytest.fixture
def patches(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of images and of masks: id 1 is a green patch, id 0 what is left and right of it, 255 the lowest rows."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    rng = np.random.default_rng(0)
    for index in range(4):
        picture, mask = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)
        picture[:, :48], picture[:, 48:] = (200, 40, 40), (40, 40, 200)
        top, left = rng.integers(0, 24), rng.integers(0, 56)
        picture[top : top + 32, left : left + 40], mask[top : top + 32, left : left + 40] = (30, 220, 30), 1
        mask[60:] = 255
        noisy = np.clip(picture + rng.integers(-10, 10, picture.shape), 0, 255).astype(np.uint8)
        for folder, array in ((images, noisy), (masks, mask)):
            folder.mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / f"{index}.png")
    return images, masks


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
