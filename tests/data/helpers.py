"""What the tests of the DataModules share: a model that records its batches, trainers, batches without one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from protoseg.data import (
    ACDC,
    ADE20K,
    GTA5,
    AdaptationDataModule,
    ADE20KFull,
    CamVid,
    Cityscapes,
    COCOStuff,
    DarkZurich,
    LabelledFolder,
    SegmentationDataModule,
    SegmentationDataset,
    Synthia,
)
from protoseg.types import AdaptationBatch, Batch

DATASETS: dict[str, Callable[[Path], SegmentationDataset]] = {
    "acdc": partial(ACDC, conditions=["fog"]),
    "ade20k": ADE20K,
    "ade20k_full": ADE20KFull,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "coco_stuff": COCOStuff,
    "dark_zurich": partial(DarkZurich, split="val"),
    "folder": lambda root: LabelledFolder(root, root / "classes.yaml"),
    "gta5": GTA5,
    "synthia": Synthia,
}
"""Every data set with masks, by the name of its config and of the fixture that fabricates it."""


class Recorder(pl.LightningModule):
    """Keeps a digest of every training batch; optionally stops with an error in the middle of a step."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[tuple[int, int, list[str]]]] = []
        self.fail_at = fail_at

    def training_step(self, batch: Batch | AdaptationBatch, batch_idx: int) -> Tensor:
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        parts = [batch] if isinstance(batch, Batch) else [batch.source, batch.target]
        self.seen.append([(int(part.image.sum()), int(part.label.sum()), part.name) for part in parts])
        return self.weight * parts[0].image.float().mean()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        torch.rand(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    defaults = {
        "max_steps": 8,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return pl.Trainer(**{**defaults, **options})


def batches(data: SegmentationDataModule | AdaptationDataModule, num_batches: int = 6) -> list[Any]:
    """The training batches, without a trainer."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        max_steps=num_batches,
        accumulate_grad_batches=1,
        limit_train_batches=1.0,
        fast_dev_run=False,
        overfit_batches=0.0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn="validate"),
        _accelerator_connector=SimpleNamespace(is_distributed=False, use_distributed_sampler=True),
    )
    return list(data.train_dataloader())


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.image, y.image) and torch.equal(x.label, y.label) and x.name == y.name
        for x, y in zip(a, b, strict=True)
    )


class StopAndSave(pl.Callback):
    def __init__(self, at: int, path: Path, hook: str) -> None:
        self.at, self.path, self.hook = at, path, hook

    def on_train_batch_end(self, trainer: pl.Trainer, model: pl.LightningModule, *_: Any) -> None:
        if self.hook == "on_train_batch_end" and len(model.seen) == self.at:  # type: ignore[arg-type]
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        if self.hook == "on_validation_end" and len(model.seen) == self.at:  # type: ignore[arg-type]
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True

    def on_exception(self, trainer: pl.Trainer, model: pl.LightningModule, exception: BaseException) -> None:
        if self.hook == "on_exception":
            trainer.save_checkpoint(self.path)
