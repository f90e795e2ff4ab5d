"""Processes that train together through Lightning's DDP are one process: their losses, prototypes and metrics.

Of the adaptation the same is shown in tests/training/test_adaptation_distributed.py.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch.optim.lr_scheduler import ConstantLR

from protoseg.checkpoint import read_checkpoint
from protoseg.distributed import all_reduce_, world_size
from protoseg.losses import CrossEntropy
from protoseg.losses.segmentation import PixelPrototypeContrast, PixelPrototypeDistance
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeHead
from protoseg.run.evaluate import run_evaluation
from protoseg.training import SupervisedModule
from protoseg.types import Batch
from tests.conftest import TINY
from tests.training.test_adaptation_distributed import SPACE, ToyDecoder, ToyEncoder, without_norms

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


def judged(configure: Callable[..., DictConfig], folder: Path, name: str, network: str) -> float:
    """mIoU of a run's last checkpoint, by one process."""
    words = (f"ckpt_path={folder / name}/checkpoints/last.ckpt", f"network={network}", "num_workers=0", "save=[]")
    return run_evaluation(configure("evaluate", *words, output=folder / f"evaluation_{network}"))


@pytest.mark.slow
def test_two_ranks_train_and_are_judged_as_one(
    configure: Callable[..., DictConfig], few_streets: Path, tmp_path: Path
) -> None:
    common = ("trainer.max_steps=1", "trainer.limit_val_batches=1.0", "trainer.val_check_interval=1")
    two = train(
        tmp_path / "two",
        *TINY,
        *common,
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "data.batch_size=1",
        f"data.root={few_streets}",
        "trainer.log_every_n_steps=1",
    )
    checkpoint = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert checkpoint["SegmentationDataModule"]["world_size"] == 2
    # The same weights judged by one process give the same metrics: summed over ranks, no image twice.
    assert judged(configure, tmp_path, "two", "student") == pytest.approx(float(two["val/mIoU"]), abs=1e-6)
    state = checkpoint["state_dict"]
    assert state["model.head.memory.updates"].sum() > 0
    torch.testing.assert_close(state["model.head.memory.prototypes"].norm(dim=2), torch.ones(11, 2))


@pytest.mark.slow
def test_two_ranks_adapt_and_are_judged_as_one(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    two = train(
        tmp_path / "two",
        *ADAPT,
        "experiment=small_pgpc",
        "trainer.max_steps=3",
        "trainer.limit_val_batches=1.0",
        "trainer.val_check_interval=3",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "method.threshold=0.1",
        "contrast.reliable=0.1",
    )
    for network, key in (("student", "val/mIoU"), ("teacher", "val/teacher_mIoU")):
        assert judged(configure, tmp_path, "two", network) == pytest.approx(float(two[key]), abs=1e-6)
    state = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["teacher.n_averaged"] == 4
    assert state["terms.contrast.reliable_queue.fill"].sum() > 0


STEPS, GLOBAL_BATCH, SIDE = 20, 6, 32


def global_batches() -> list[Batch]:
    """The batches of one process: labels on the grid's cells, one class on one image only, some pixels ignored."""
    batches = []
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        image = torch.randint(0, 256, (GLOBAL_BATCH, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        label = torch.randint(0, 3, (GLOBAL_BATCH, SIDE // 4, SIDE // 4), generator=g)
        label[step % GLOBAL_BATCH, :2], label[(step + 1) % GLOBAL_BATCH, 3:] = 3, -1
        label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
        batches.append(Batch(image, label, torch.full((GLOBAL_BATCH, 2), SIDE), ["x"] * GLOBAL_BATCH))
    return batches


class Losses(pl.Callback):
    """The loss of every step, the mean over ranks."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(all_reduce_(outputs["loss"].detach().clone()) / world_size())


def train_toy(rank: int, world: int, folder: str) -> dict[str, torch.Tensor]:
    """Twenty steps of this rank's share of the global batches, in fp64 and without norms over the batch."""
    torch.manual_seed(0)
    head = partial(PrototypeHead, num_prototypes=3, temperature=0.5, momentum=0.9)
    model = without_norms(Segmentor(ToyEncoder(), ToyDecoder, head, len(SPACE.classes)))  # type: ignore[arg-type]
    module = SupervisedModule(
        model=model,  # type: ignore[arg-type]
        label_space=SPACE,
        losses={
            "ce": CrossEntropy(),
            "ppc": PixelPrototypeContrast(weight=0.1),
            "ppd": PixelPrototypeDistance(weight=0.1),
        },
        optimizer=lambda module: torch.optim.SGD(module.model.parameters(), lr=0.2, momentum=0.9),
        schedule=lambda optimizer, total_steps: ConstantLR(optimizer, 1.0),
    ).double()
    share = GLOBAL_BATCH // world
    part = slice(rank * share, (rank + 1) * share)
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        max_steps=STEPS,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    batches = [Batch(*(None if field is None else field[part] for field in batch)) for batch in global_batches()]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == STEPS
    return {"losses": torch.stack(losses.values), **{k: v.clone() for k, v in module.model.state_dict().items()}}


def toy_worker(rank: int, world: int, folder: str) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}", "TORCHELASTIC_RUN_ID": "test"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(train_toy(rank, world, folder), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_train_as_one_process_on_the_global_batch(world: int, tmp_path: Path) -> None:
    one = train_toy(0, 1, str(tmp_path))
    assert one["losses"][-1] < one["losses"][0]
    assert one["head.memory.updates"].min() > 0
    torch.multiprocessing.spawn(toy_worker, (world, str(tmp_path)), nprocs=world)
    for rank in range(world):
        many = torch.load(tmp_path / f"{rank}.pt")
        for name, value in one.items():
            torch.testing.assert_close(many[name], value, atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
