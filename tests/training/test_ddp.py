"""Two processes train together through Lightning's DDP; their metrics are those of one process.

That the prototypes are those of one process is shown, exactly, in tests/nn/test_memory_distributed.py.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protoseg.checkpoint import read_checkpoint
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
ADAPT = tuple(x for x in TINY if not x.startswith("head."))  # the head has no prototypes


def run(script: str, *overrides: str) -> None:
    command = [sys.executable, script, *overrides]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def train(output: Path, *overrides: str) -> dict[str, str]:
    """Run train.py; the last validation row of its log."""
    run("train.py", "data.num_workers=0", *overrides, f"hydra.run.dir={output}")
    with open(output / "logs" / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["val/mIoU"]][-1]


def judged(folder: Path, name: str, network: str) -> float:
    """mIoU of a run's last checkpoint, by one process."""
    output = folder / f"evaluation_{network}"
    checkpoint = f"ckpt_path={folder / name}/checkpoints/last.ckpt"
    run("evaluate.py", checkpoint, f"network={network}", "num_workers=0", "save=[]", f"hydra.run.dir={output}")
    return float(json.loads((output / "metrics.json").read_text())["mIoU"])


def test_two_ranks_train_and_are_judged_as_one(tmp_path: Path) -> None:
    common = ("trainer.max_steps=3", "trainer.limit_val_batches=1.0", "trainer.val_check_interval=3")
    two = train(
        tmp_path / "two",
        *TINY,
        *common,
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "data.batch_size=1",
        "trainer.log_every_n_steps=1",
    )
    checkpoint = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert checkpoint["SegmentationDataModule"]["world_size"] == 2
    # The same weights judged by one process give the same metrics: summed over ranks, no image twice.
    assert judged(tmp_path, "two", "student") == pytest.approx(float(two["val/mIoU"]), abs=1e-6)
    state = checkpoint["state_dict"]
    assert state["model.head.memory.updates"].sum() > 0
    torch.testing.assert_close(state["model.head.memory.prototypes"].norm(dim=2), torch.ones(11, 2))


@pytest.mark.slow
def test_two_ranks_adapt_and_are_judged_as_one(tmp_path: Path) -> None:
    two = train(
        tmp_path / "two",
        *ADAPT,
        "experiment=streets_day_to_dusk_pgpc",
        "trainer.max_steps=3",
        "trainer.limit_val_batches=1.0",
        "trainer.val_check_interval=3",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "method.threshold=0.1",
        "contrast.reliable=0.1",
    )
    for network, key in (("student", "val/mIoU"), ("teacher", "val/teacher_mIoU")):
        assert judged(tmp_path, "two", network) == pytest.approx(float(two[key]), abs=1e-6)
    state = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["teacher.n_averaged"] == 4
    assert state["terms.contrast.reliable_queue.fill"].sum() > 0
