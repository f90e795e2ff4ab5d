"""Swapped regions, and how many of them a ranking finds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from benchmarks import wrong_labels
from protoseg.analysis.wrong_labels import regions
from protoseg.checkpoint import save_checkpoint
from protoseg.data import CAMVID, LabelledFolder, Streets
from protoseg.run.build import build_module
from tests.conftest import TINY


def label() -> torch.Tensor:
    ids = torch.zeros(60, 60, dtype=torch.int64)
    ids[:, 40:] = 1
    ids[5:20, 5:20], ids[30:45, 5:20] = 2, 2
    ids[50:] = -1
    return ids


def test_a_swapped_region_stays_one_of_another_class() -> None:
    before = label()
    for seed in range(20):
        after, pixels = wrong_labels.swap(before, 5, 0.5, np.random.default_rng(seed))
        assert ((after != before).numpy() == pixels).all()
        assert (after[50:] == -1).all()
        assert len([*regions(after)]) == 4
    same, none = wrong_labels.swap(before, 5, 0.0, np.random.default_rng(0))
    assert torch.equal(same, before)
    assert not none.any()


def test_precision() -> None:
    swapped = np.zeros(100, bool)
    swapped[[0, 1, 2, 99]] = True
    score = -np.arange(100.0)
    assert wrong_labels.precision(score, swapped) == {"10": 30, "20": 15, "50": 6, "all": 75}


def test_the_table_of_a_trained_model(
    configure: Callable[..., DictConfig], tmp_path: Path, few_streets: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module, checkpoint = build_module(configure("train", *TINY), CAMVID), tmp_path / "base.ckpt"
    state: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    save_checkpoint(state, checkpoint)

    def find_label_issues(labels: NDArray[np.integer], said: NDArray[np.float32], **_: object) -> NDArray[np.bool_]:
        assert labels.min() >= 0
        return said.argmax(1) != labels

    monkeypatch.setitem(sys.modules, "cleanlab", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cleanlab.segmentation", SimpleNamespace())
    own = SimpleNamespace(find_label_issues=find_label_issues)
    monkeypatch.setitem(sys.modules, "cleanlab.segmentation.filter", own)
    asked = [str(checkpoint), "--root", str(few_streets), "--share", "0.3", "--seeds", "0", "1", "--step", "3"]
    found = wrong_labels.main([*asked, "--cleanlab", "/nowhere"])
    assert list(found) == ["data check --model", "cleanlab, share flagged", "1 - probability of the label"]
    assert all(len(runs) == 2 for runs in found.values())
    assert "| cleanlab, share flagged |" in capsys.readouterr().out

    folder = tmp_path / "swapped"
    asked = [str(checkpoint), "--root", str(few_streets), "--share", "0.5", "--write", str(folder)]
    assert wrong_labels.main(asked) == {}
    clean, swapped = Streets(root=few_streets), LabelledFolder(folder, folder / "classes.yaml", "train")
    assert swapped.label_space.classes == CAMVID.classes
    assert len(swapped) == len(clean) == len(LabelledFolder(folder, folder / "classes.yaml", "val"))
    for index in range(len(clean)):
        image, label, _ = clean[index]
        expected, _ = wrong_labels.swap(label, 11, 0.5, np.random.default_rng([0, index]))
        assert torch.equal(swapped[index].label, expected)
        assert torch.equal(swapped[index].image, image)
