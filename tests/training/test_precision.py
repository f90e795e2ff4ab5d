"""Half precision through the trainer: close to fp32, and resumed to the bit with the state of its gradient scaler.

Lightning refuses 16-mixed on a CPU, where torch has all it takes; so the plugin is handed to the trainer here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.amp import GradScaler

from protoseg.checkpoint import read_checkpoint
from protoseg.run import train
from protoseg.run.train import run_training
from tests.conftest import TINY
from tests.training.test_resume import assert_resumes

Configure = Callable[..., DictConfig]
ADAPT = (
    "experiment=small_daformer",
    *(x for x in TINY if not x.startswith("head.")),
    "method.threshold=0.1",  # a random teacher is never sure
)
PGPC = (*ADAPT, "contrast=pgpc", "contrast.reliable=0.1", "contrast.num_prototypes=1")
LARGER = (
    *("encoder.name=mobilenetv3_small_050", "data.crop_size=[128,192]", "data.batch_size=4"),
    *("trainer.max_steps=2", "trainer.val_check_interval=2"),
)


def use_fp16(monkeypatch: pytest.MonkeyPatch, init_scale: float = 128.0, growth_interval: int = 2000) -> None:
    def plugins() -> list[Any]:
        return [MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale, growth_interval=growth_interval))]

    monkeypatch.setattr(train, "own_environment", plugins)


def trained(run: Path, cfg: DictConfig) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The losses of every step, and the state at the end."""
    run_training(cfg)
    with open(run / "logs" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses = [
        {
            key: float(value)
            for key, value in row.items()
            if key.startswith("train/") and key != "train/images_per_s" and value
        }
        for row in rows
    ]
    return losses, read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "prototypes", "terms"),
    [
        ((*TINY, "head.num_prototypes=1"), "model.head.memory.prototypes", {"ce", "ppc", "ppd"}),
        (PGPC, "terms.contrast.memory.prototypes", {"ce", "mixed", "contrast"}),
    ],
    ids=["supervised", "adaptation"],
)
def test_losses_and_prototypes_are_near_those_of_fp32(
    settings: tuple[str, ...],
    prototypes: str,
    terms: set[str],
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounds for two steps from random weights, of each loss and of the mean cosine between the prototypes.

    bf16: 2 % and 0.95; fp16: 0.5 % and 0.99. Measured over three seeds, at worst: bf16 0.6 % and 0.980, fp16 0.2 % and
    0.9986. All of it comes from the network, whose BatchNorm sees few values here; from the embeddings on, it is fp32.
    """
    runs = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        with monkeypatch.context() as patch:
            if precision == "16-mixed":
                use_fp16(patch)
            run = tmp_path / precision
            given = "null" if precision == "16-mixed" else precision
            cfg = configure("train", *settings, *LARGER, f"trainer.precision={given}", output=run)
            runs[precision] = trained(run, cfg)
    losses, state = runs["32-true"]
    assert len(losses) == 2
    assert {f"train/{name}" for name in terms} <= losses[1].keys()
    assert losses[1]["train/contrast" if "contrast" in terms else "train/ppc"] > 0
    for precision, relative, cosine in (("bf16-mixed", 0.02, 0.95), ("16-mixed", 0.005, 0.99)):
        low, low_state = runs[precision]
        assert low != losses
        for full, half in zip(losses, low, strict=True):
            for name in terms:
                assert half[f"train/{name}"] == pytest.approx(full[f"train/{name}"], rel=relative, abs=1e-3)
        assert torch.cosine_similarity(state[prototypes], low_state[prototypes], dim=2).mean() > cosine
        assert low_state[prototypes].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(TINY, id="supervised"),
        pytest.param((*ADAPT, "contrast=sepico_proto"), id="sepico_proto", marks=pytest.mark.slow),
        pytest.param((*PGPC, "method.separate_backward=true"), id="separate_backward", marks=pytest.mark.slow),
    ],
)
def test_fp16_resumes_with_its_scaler(
    settings: tuple[str, ...], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a scale at which the first steps overflow and are void; the kill comes after such a step."""
    use_fp16(monkeypatch, init_scale=2.0**60, growth_interval=1)
    small = ("trainer.precision=null", "trainer.max_steps=4", "trainer.val_check_interval=4")
    assert_resumes(configure, tmp_path, monkeypatch, (*settings, *small), 1, "on_train_batch_start")
    first, last = (read_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("stopped", "resumed"))
    straight = read_checkpoint(tmp_path / "straight" / "checkpoints" / "last.ckpt")
    assert first["MixedPrecision"]["scale"] == 2.0**59  # halved: the step was void
    assert last["MixedPrecision"] == straight["MixedPrecision"]
    assert first["MixedPrecision"] != last["MixedPrecision"]


def test_a_void_step_moves_no_teacher(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fp16(monkeypatch, init_scale=2.0**120)
    run_training(configure("train", *ADAPT, "contrast=sepico_proto", "trainer.precision=null", "trainer.max_steps=1"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["teacher.n_averaged"] == 1
    assert state["terms.contrast.means.updates"].sum() == 0


def test_fp16_on_a_cpu_says_that_it_becomes_bf16(configure: Configure) -> None:
    with pytest.warns(UserWarning, match=r"16-mixed.*not supported on CPU. Using `precision='bf16-mixed'` instead"):
        run_training(configure("train", *TINY, "trainer.precision=16-mixed", "trainer.max_steps=1"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", [TINY, PGPC], ids=["supervised", "adaptation"])
def test_fp16_resumes_on_a_gpu(settings: tuple[str, ...], configure: Configure, tmp_path: Path) -> None:
    # To the bit only by chance: CUDA's sums come in any order. The scaler is counted in whole steps.
    gpu = [x for x in settings if x != "trainer.accelerator=cpu"]
    run_training(configure("train", *gpu, "trainer.precision=16-mixed", "trainer.max_steps=2"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = read_checkpoint(last)["MixedPrecision"]
    cfg = configure(
        "train", *gpu, "trainer.precision=16-mixed", "trainer.max_steps=4", f"resume={last}", output=tmp_path / "b"
    )
    run_training(cfg)
    after = read_checkpoint(tmp_path / "b" / "checkpoints" / "last.ckpt")["MixedPrecision"]
    assert after["_growth_tracker"] > before["_growth_tracker"] or after["scale"] < before["scale"]
