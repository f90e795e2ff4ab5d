"""Accumulated micro-batches train as the large batch does, prototypes included."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR

from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeHead
from protoseg.training import SupervisedModule
from protoseg.types import Batch
from tests.training.test_adaptation_distributed import SPACE, ToyDecoder, ToyEncoder, without_norms

STEPS, BATCH, SIDE = 6, 6, 32


def micro_batches(size: int, steps: int) -> list[Batch]:
    """The same images whatever their number in a batch; one class is on one image only."""
    batches: list[Batch] = []
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        image = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        label = torch.randint(0, 3, (BATCH, SIDE // 4, SIDE // 4), generator=g)
        label[step % BATCH, :2], label[:, 7:] = 3, -1
        label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
        parts = zip(image.split(size), label.split(size), strict=True)
        batches += [Batch(a, b, torch.full((size, 2), SIDE), ["x"] * size) for a, b in parts]
    return batches


def trained(accumulate: int, prototypes: int, steps: int, folder: Path, contrast: bool = True) -> dict[str, Tensor]:
    """State of a model without norms over the batch, in fp64, after some steps."""
    torch.manual_seed(0)
    head = partial(PrototypeHead, num_prototypes=prototypes, temperature=0.5, momentum=0.9)
    terms = {"ppc": PixelPrototypeContrast(0.1), "ppd": PixelPrototypeDistance(0.1)}
    module = SupervisedModule(
        model=without_norms(Segmentor(ToyEncoder(), ToyDecoder, head, 4)),  # type: ignore[arg-type]
        label_space=SPACE,
        losses={"ce": CrossEntropy(), **(terms if contrast else {})},
        optimizer=lambda module: torch.optim.SGD(module.model.parameters(), lr=0.2, momentum=0.9),
        schedule=lambda optimizer, total_steps: ConstantLR(optimizer, 1.0),
    ).double()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    batches = micro_batches(BATCH // accumulate, steps)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == steps
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def assert_same(many: dict[str, Tensor], one: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("accumulate", [2, 3])
def test_one_prototype_per_class(accumulate: int, tmp_path: Path) -> None:
    one, many = (trained(count, 1, STEPS, tmp_path) for count in (1, accumulate))
    assert (one["head.memory.updates"] > 1).all()
    assert_same(many, one)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_several_prototypes_per_class(accumulate: int, tmp_path: Path) -> None:
    """What a step accumulates is balanced together; only the targets of PPC and PPD are those of a micro-batch."""
    one, many = (trained(count, 3, STEPS, tmp_path, contrast=False) for count in (1, accumulate))
    assert (one["head.memory.updates"].amax(1) > 1).all()
    assert_same(many, one)


def test_one_step_with_all_losses_gives_the_same_prototypes(tmp_path: Path) -> None:
    one, many = (trained(count, 3, 1, tmp_path)["head.memory.prototypes"] for count in (1, 3))
    torch.testing.assert_close(many, one, atol=1e-9, rtol=0)
