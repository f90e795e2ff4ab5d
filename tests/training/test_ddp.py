"""Two processes train together through Lightning's DDP; their metrics are those of one process.

That the prototypes are those of one process is shown, exactly, in tests/nn/test_memory_distributed.py.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protoseg.checkpoint import read_checkpoint
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]


def train(output: Path, *overrides: str) -> dict[str, str]:
    """Run train.py; the last validation row of its log."""
    command = [sys.executable, "train.py", *TINY, "data.num_workers=0", *overrides, f"hydra.run.dir={output}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    with open(output / "logs" / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["val/mIoU"]][-1]


def test_two_ranks_train_and_are_judged_as_one(tmp_path: Path) -> None:
    common = ("trainer.max_steps=3", "trainer.limit_val_batches=1.0", "trainer.val_check_interval=3")
    two = train(
        tmp_path / "two",
        *common,
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "data.batch_size=1",
        "trainer.log_every_n_steps=1",
    )
    checkpoint = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert checkpoint["SegmentationDataModule"]["world_size"] == 2
    # The same weights judged by one process give the same metrics: summed over ranks, no image twice.
    command = [
        sys.executable,
        "evaluate.py",
        f"ckpt_path={tmp_path}/two/checkpoints/last.ckpt",
        "num_workers=0",
        "save=[]",
    ]
    result = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}/evaluation"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    import json

    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["mIoU"] == pytest.approx(float(two["val/mIoU"]), abs=1e-6)
    state = checkpoint["state_dict"]
    assert state["model.head.memory.updates"].sum() > 0
    torch.testing.assert_close(state["model.head.memory.prototypes"].norm(dim=2), torch.ones(11, 2))
