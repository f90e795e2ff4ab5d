"""Classes taught one after another."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.incremental import WAYS, main, new_or_not
from protoseg.checkpoint import save_checkpoint
from protoseg.data import Streets
from protoseg.run.build import build_module
from protoseg.teach import with_statistics
from protoseg.trained import open_file
from protoseg.types import IGNORE_INDEX
from tests.conftest import TINY


def test_all_that_is_not_the_new_class_counts_as_one() -> None:
    logits = torch.randn(1, 3, 1, 4)
    model: Any = SimpleNamespace(segment=lambda image: SimpleNamespace(logits=logits), stride=1)
    label = torch.tensor([[[7, 0, IGNORE_INDEX, 7]]])
    p = logits.softmax(1)[0, 2, 0]
    expected = -(p[0].log() + (1 - p[1]).log() + p[3].log()) / 3
    torch.testing.assert_close(new_or_not(model, 7, torch.zeros(1, 3, 1, 4), label), expected)


@pytest.mark.slow
def test_every_way_is_taken_and_judged(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Streets.__init__

    def init(self: Streets, *args: object, **options: object) -> None:
        whole(self, *args, **options)  # type: ignore[arg-type]
        self.samples = self.samples[:4]

    monkeypatch.setattr(Streets, "__init__", init)
    monkeypatch.setattr("protoseg.teach.tuning.STEPS", 1)
    cfg = configure("train", *TINY, "data.relabel={Car: null, Tree: null}")
    data = instantiate(cfg.data)
    module = build_module(cfg, data.label_space)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    path, out = tmp_path / "base.ckpt", tmp_path / "found.json"
    save_checkpoint(checkpoint, path)
    save_checkpoint(with_statistics(open_file(path), data.dataset("train")).content, path)
    monkeypatch.setattr(sys, "argv", ["incremental", str(path), "--shots", "2", "--json", str(out)])
    main()
    found = json.loads(out.read_text())
    assert list(found) == [f"{way}, draw 0" for way in WAYS]
    assert all(len(one["iou"]) == 11 and one["new"] is not None for one in found.values())
