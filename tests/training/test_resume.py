"""A run stopped at any step and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch.testing import assert_close

from protoseg.callbacks import Throughput
from protoseg.callbacks.checkpoint import Restart, StopRequest
from protoseg.checkpoint import read_checkpoint
from protoseg.evaluation.curves import read_log
from protoseg.evaluation.metrics import scores
from protoseg.run.train import run_training
from protoseg.training.optim import poly_factor
from protoseg.types import ProtosegError
from tests.conftest import DRAWN, SAVED, TINY


def constant_schedule(optimizer: torch.optim.Optimizer, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule that does not know where the training ends, so that an extended run can equal a longer one."""
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


class Stop(Exception):
    """Stands for a kill: nothing is saved after it."""


@contextmanager
def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int, hook: str) -> Iterator[None]:
    """Raise in a callback hook once ``step`` optimizer steps are done; swallow it outside."""

    def raising(self: Throughput, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, hook, raising)
        with pytest.raises(Stop):
            yield


def tensors(node: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield prefix, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{prefix}.{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from tensors(value, f"{prefix}.{i}")


def assert_same_bits(left: Path, right: Path) -> None:
    ours, theirs = read_checkpoint(left), read_checkpoint(right)
    for key in ("state_dict", "optimizer_states"):
        a, b = dict(tensors(ours[key])), dict(tensors(theirs[key]))
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert ours["global_step"] == theirs["global_step"]
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]


def validations(run: Path) -> dict[str, str]:
    import csv

    with open(run / "logs" / "metrics.csv") as file:
        return {row["step"]: row["val/mIoU"] for row in csv.DictReader(file) if row["val/mIoU"]}


def assert_resumes(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    step: int,
    hook: str,
) -> None:
    """Train straight, then stop at ``step`` and resume: the same bits."""
    settings = (*settings, SAVED)
    run_training(configure("train", *settings, output=tmp_path / "straight"))
    with stopped_at(monkeypatch, step, hook):
        run_training(configure("train", *settings, output=tmp_path / "stopped"))
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == step
    run_training(configure("train", *settings, f"resume={last}", output=tmp_path / "resumed"))
    name = Path("checkpoints") / "last.ckpt"
    assert_same_bits(tmp_path / "straight" / name, tmp_path / "resumed" / name)


DROPS_PATHS = ("encoder.name=mobilenetv3_small_050", "+encoder.drop_path_rate=0.2")  # TINY's has none to drop
EXTRA = ("head.assignment=gumbel", "decoder.dropout=0.2", *DROPS_PATHS, "data.num_workers=1")


@pytest.mark.parametrize(
    ("base", "step", "hook"),
    [
        pytest.param(DRAWN, 1, "on_train_batch_start", marks=pytest.mark.slow),
        pytest.param(DRAWN, 3, "on_validation_start", marks=pytest.mark.slow),
        ((*TINY, "contrast=pixel_contrast"), 3, "on_validation_end"),
        pytest.param(DRAWN, 3, "on_validation_end", marks=pytest.mark.slow),
        pytest.param(DRAWN, 4, "on_train_batch_start", marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_never_stopped(
    base: tuple[str, ...],
    step: int,
    hook: str,
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_resumes(configure, tmp_path, monkeypatch, (*base, *EXTRA), step, hook)
    expected = validations(tmp_path / "straight")
    resumed = validations(tmp_path / "resumed")
    assert resumed["5"] == expected["5"]
    assert resumed.items() <= expected.items()
    if "contrast=pixel_contrast" in base:
        state = read_checkpoint(tmp_path / "resumed" / "checkpoints" / "last.ckpt")["state_dict"]
        assert all(state[f"terms.contrast.{name}.fill"].sum() > 0 for name in ("queue", "region_queue"))


@pytest.mark.slow
def test_gradient_accumulation_resumes_too(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*TINY, "trainer.accumulate_grad_batches=2", "trainer.max_steps=4", "trainer.val_check_interval=8")
    assert_resumes(configure, tmp_path, monkeypatch, overrides, 2, "on_train_batch_start")


def test_twice_the_same_seed_is_the_same_run_whatever_the_workers(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    for workers in (0, 2):
        run_training(configure("train", *TINY, f"data.num_workers={workers}", output=tmp_path / str(workers)))
    name = Path("checkpoints") / "last.ckpt"
    assert_same_bits(tmp_path / "0" / name, tmp_path / "2" / name)


def test_resume_with_another_batch_size_or_other_classes_is_refused(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match="batch_size"):
        run_training(configure("train", *TINY, f"resume={last}", "data.batch_size=3", output=tmp_path / "b"))
    with pytest.raises(ProtosegError, match="11 classes"):
        run_training(configure("train", *TINY, "data=cityscapes", f"resume={last}", output=tmp_path / "c"))


def test_a_resumed_run_remembers_its_best_score(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.5, 0.4, 0.3])  # the peak is before the stop
    monkeypatch.setattr("protoseg.training.base.scores", lambda *of: {**scores(*of), "mIoU": next(found)})
    overrides = (*TINY, SAVED, "trainer.val_check_interval=2")
    with stopped_at(monkeypatch, 3, "on_train_batch_start"):
        run_training(configure("train", *overrides, output=tmp_path / "stopped"))
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    best = run_training(configure("train", *overrides, f"resume={last}", output=tmp_path / "resumed"))
    assert best == pytest.approx(0.5)
    assert not (tmp_path / "resumed" / "checkpoints" / "best.ckpt").exists()
    assert (tmp_path / "stopped" / "checkpoints" / "best.ckpt").exists()


def test_a_finished_run_can_be_extended(
    configure: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *overrides: str) -> Path:
        cfg = configure("train", *TINY, "trainer.val_check_interval=2", *overrides, output=tmp_path / name)
        cfg.schedule = {"_target_": f"{__name__}.constant_schedule"}
        run_training(cfg)
        return tmp_path / name / "checkpoints" / "last.ckpt"

    whole = run("whole", "trainer.max_steps=7")
    first = run("first", "trainer.max_steps=4")
    extended = run("extended", "trainer.max_steps=7", f"resume={first}")
    assert "resumed with changed settings: trainer.max_steps 4 -> 7\n" in capsys.readouterr().out
    assert_same_bits(whole, extended)
    assert read_checkpoint(extended)["SegmentationDataModule"]["batches"] == 7
    assert list(validations(tmp_path / "extended")) == ["5", "6"]  # the last step is judged


def test_an_earlier_log_in_the_same_folder_is_kept(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    for _ in range(2):
        run_training(configure("train", *TINY, "trainer.max_steps=1"))
    assert (tmp_path / "run" / "logs" / "metrics.csv").is_file()
    assert (tmp_path / "run" / "logs_1" / "metrics.csv").is_file()


def test_resume_with_another_model_is_one_clear_error(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match=r"cannot change: head\.num_prototypes 2 -> 3"):
        run_training(configure("train", *TINY, "head.num_prototypes=3", f"resume={last}", output=tmp_path / "other"))


def rates(run: Path) -> dict[int, float]:
    """Learning rate of the decoder by step, as logged."""
    rows = read_log(run)
    return {int(row["step"]): float(row["lr-AdamW/decoder"]) for row in rows if row.get("lr-AdamW/decoder")}


def test_a_resumed_run_follows_its_new_settings(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    cheap = (*TINY, "trainer.val_check_interval=6", "optimizer.encoder_lr=null")
    run_training(configure("train", *cheap, "trainer.max_steps=2", output=tmp_path / "a"))
    new = ("trainer.max_steps=5", "optimizer.lr=0.01", "optimizer.weight_decay=0.3", "schedule.power=2")
    more = (*new, "+optimizer.optimizer.betas=[0.5,0.6]", f"resume={tmp_path}/a/checkpoints/last.ckpt")
    run_training(configure("train", *cheap, *more, output=tmp_path / "b"))
    expected = {step: 0.01 * poly_factor(step, 5, 2, 0, 0) for step in (2, 3, 4)}
    assert rates(tmp_path / "b") == pytest.approx(expected)
    (state,) = read_checkpoint(tmp_path / "b" / "checkpoints" / "last.ckpt")["optimizer_states"]
    assert {(group["initial_lr"], tuple(group["betas"])) for group in state["param_groups"]} == {(0.01, (0.5, 0.6))}
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.3, 0.0}


def test_a_finished_run_is_shown_and_not_trained(
    configure: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*TINY, "trainer.max_steps=2", "trainer.val_check_interval=1", "resume=auto")
    score = run_training(configure("train", *settings))
    run = tmp_path / "run"
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "curves.png"}
    capsys.readouterr()
    assert run_training(configure("train", *settings, "optimizer.lr=1")) == score
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "curves.png"} == written
    printed = capsys.readouterr().out
    assert f"{score:.4f}" in printed
    assert f"Evaluate it: python evaluate.py ckpt_path={run}/checkpoints/best.ckpt\n" in printed
    assert "Nothing to do: all 2 steps were done before" in printed
    assert "Changed settings have no effect any more: optimizer.lr 0.002 -> 1" in printed
    last = run / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match=r"expected a training with steps to do.*done 2 of trainer\.max_steps=2"):
        run_training(configure("train", *settings[:-1], f"resume={last}", output=tmp_path / "other"))


def test_a_strangers_checkpoint_deletes_nothing_and_is_refused_where_it_is_malformed(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cheap = (*TINY, SAVED, "trainer.val_check_interval=1")
    run_training(configure("train", *cheap, "trainer.max_steps=1"))
    last, odd = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "odd.ckpt"
    victims = [tmp_path / "folder" / "best.ckpt", tmp_path / "victim.ckpt", tmp_path / "b" / "notes.txt"]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.touch()
    checkpoint = read_checkpoint(last)
    plain = {"monitor": "val/mIoU", "mode": "max", "every_n_train_steps": 0, "every_n_epochs": 1}
    keys = [key for key in checkpoint["callbacks"] if key.startswith("Checkpoint")]
    keys += [f"Model{key}" for key in keys if plain["monitor"] in key]
    for key in keys:
        for path in (str(victims[0].parent), str(victims[1]), f"{tmp_path}/b/checkpoints/.."):
            hostile = {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path}
            score = torch.tensor(-1.0)
            hostile |= {"best_k_models": {path: score}, "best_model_score": score, "kth_value": score}
            checkpoint["callbacks"][key] = {**hostile, "dirpath": os.path.dirname(path)}
        torch.save(checkpoint, odd)
    own = "{_target_: pytorch_lightning.callbacks.ModelCheckpoint, dirpath: '${paths.output}/c', monitor: val/mIoU, "
    settings = (
        "train",
        *cheap,
        "trainer.max_steps=2",
        f"resume={odd}",
        f"+callbacks.own={own}mode: max, filename: a}}",
    )
    run_training(configure(*settings, output=tmp_path / "b"))
    assert all(victim.exists() for victim in victims)
    assert sorted(os.listdir(tmp_path / "b" / "checkpoints")) == ["best.ckpt", "last.ckpt"]

    def refused(message: str, **parts: Any) -> None:
        torch.save({**read_checkpoint(last), **parts}, odd)
        with pytest.raises(ProtosegError, match=message):
            run_training(configure(*settings[:-1], output=tmp_path / "c"))

    loops, (optimizer,) = checkpoint["loops"], checkpoint["optimizer_states"]
    progress = "epoch_loop.batch_progress"
    wrong = {**loops["fit_loop"], progress: {**loops["fit_loop"][progress], "increment_ready": 5}}
    small = {i: {**state, "exp_avg": torch.zeros(7)} for i, state in optimizer["state"].items()}
    refused(r"damaged.*epoch_loop\.batch_progress: expected total", loops={"fit_loop": wrong})
    refused("damaged.*KeyError: 'fit_loop'", loops={})
    refused("damaged.*exp_avg does not fit", optimizer_states=[{**optimizer, "state": small}])
    for change in ({"step": torch.tensor(-5.0)}, {"step": torch.tensor(torch.inf)}):
        state = {i: state | change for i, state in optimizer["state"].items()}
        refused("damaged.*step does not fit", optimizer_states=[{**optimizer, "state": state}])
    more = optimizer["state"] | {10**6: optimizer["state"][0]}
    refused("damaged.*parameter '1000000', which there is not", optimizer_states=[{**optimizer, "state": more}])
    data = checkpoint["SegmentationDataModule"]
    refused("damaged.*1099511627776 batches of the", SegmentationDataModule={**data, "batches": 2**40})
    refused("damaged.*ValueError", optimizer_states=[{"state": {}, "param_groups": []}])
    refused("damaged.*'many' batches of the", SegmentationDataModule={**data, "batches": "many"})
    refused("scores of its best models", callbacks={keys[0]: {"best_model_path": "", "best_k_models": {"a": "b"}}})


def test_no_validation_is_due_after_the_end(tmp_path: Path) -> None:
    for completed, due in ((0, True), (1, False)):
        restart = Restart(StopRequest(()), tmp_path / "last.ckpt")
        loops = {"fit_loop": {"epoch_progress": {"current": {"completed": completed}}}}
        trainer, module = pl.Trainer(max_steps=9, logger=False), pl.LightningModule()
        restart.on_load_checkpoint(trainer, module, {"loops": loops, "global_step": 4})
        restart.load_state_dict({"validation_due": True})
        assert restart.state_dict() == {"validation_due": due}


@pytest.mark.slow
def test_the_best_of_several_checkpoints_is_best(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.2, 0.5, 0.1, 0.3, 0.4, 0.6])
    monkeypatch.setattr("protoseg.training.base.scores", lambda *of: {**scores(*of), "mIoU": next(found)})
    cheap = (*TINY, "trainer.val_check_interval=1", "callbacks.best.save_top_k=2")
    folder = tmp_path / "run" / "checkpoints"

    def run_to(steps: int) -> tuple[list[str], int]:
        run_training(configure("train", *cheap, f"trainer.max_steps={steps}", "resume=auto"))
        return sorted(os.listdir(folder)), read_checkpoint(folder / "best.ckpt")["global_step"]

    assert run_to(4) == (["best-000002.ckpt", "best-000004.ckpt", "best.ckpt", "last.ckpt"], 2)
    assert run_to(5) == (["best-000002.ckpt", "best-000005.ckpt", "best.ckpt", "last.ckpt"], 2)
    assert run_to(6) == (["best-000002.ckpt", "best-000006.ckpt", "best.ckpt", "last.ckpt"], 6)


@pytest.mark.slow
def test_a_training_starts_from_weights_alone(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    """As ``protoseg convert`` writes them: student and teacher begin there, at step 0, with its normalisation."""
    small = (*TINY, "experiment=small_dacs", "head=prototype", "trainer.max_steps=1", "threads=1")
    run_training(configure("train", *small, output=tmp_path / "a"))
    saved = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    weights = {name: value for name, value in saved["state_dict"].items() if name.startswith("model.")}
    saved["protoseg"]["config"]["encoder"] |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "weights": "there.pth"}
    torch.save({"state_dict": weights, "protoseg": saved["protoseg"]}, tmp_path / "alone.ckpt")

    still = ("optimizer.lr=0", "optimizer.encoder_lr=0", "optimizer.weight_decay=0", f"init_from={tmp_path}/alone.ckpt")
    run_training(configure("train", *small, *still, "method.alpha=0.9", "data.batch_size=1", output=tmp_path / "b"))
    after = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == 1
    assert after["protoseg"]["config"]["encoder"]["mean"] == [0.4, 0.5, 0.6]
    for network in ("model.", "teacher.module."):
        for name in ("model.head.projection.3.weight", "model.encoder.model.conv_stem.weight"):
            assert_close(after["state_dict"][name.replace("model.", network, 1)], weights[name])
    with pytest.raises(ProtosegError, match="got weights alone; start a new training"):
        run_training(configure("train", *small, f"resume={tmp_path}/alone.ckpt", output=tmp_path / "c"))
