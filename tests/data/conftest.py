"""Tiny data sets in their true formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

Write = Callable[..., None]


def _write_image(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), noise)


def _write_mask(path: Path, height: int = 24, width: int = 32, seed: int = 0, ids: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.random.default_rng(seed).integers(0, ids, (height, width), dtype=np.uint8)
    assert cv2.imwrite(str(path), mask)


@pytest.fixture
def write_image() -> Write:
    return _write_image


@pytest.fixture
def write_mask() -> Write:
    return _write_mask


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """CamVid in SegNet's form: 7 train, 3 val and 1 test image, by day (PNG) and at dusk (JPEG)."""
    for split, count in (("train", 7), ("val", 3), ("test", 1)):
        for i in range(count):
            name = f"0001TP_{i:06d}" if i % 2 else f"0006R0_f{i:05d}"
            _write_image(tmp_path / split / f"{name}{'.jpg' if i % 2 else '.png'}", seed=i)
            _write_mask(tmp_path / f"{split}annot" / f"{name}.png", seed=i)
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Cityscapes in its official layout: two cities with a file of the same number each, all 34 ids."""
    for city in ("aachen", "ulm"):
        name = f"{city}_000000_000019"
        _write_image(tmp_path / "leftImg8bit/train" / city / f"{name}_leftImg8bit.png")
        masks = tmp_path / "gtFine/train" / city
        _write_mask(masks / f"{name}_gtFine_labelIds.png", ids=34)
        _write_mask(masks / f"{name}_gtFine_instanceIds.png")
        _write_image(masks / f"{name}_gtFine_color.png")
    return tmp_path
