"""Settings that changed since the checkpoint: taken over and said, or refused by name; never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protoseg.run.resuming import SAID, SILENT, changed_settings, checkpoint_to_resume, is_finished, rule_of
from protoseg.types import ProtosegError


def config(**more: Any) -> dict[str, Any]:
    return {
        "seed": 0,
        "resume": None,
        "paths": {"output": "/runs/a"},
        "optimizer": {"lr": 0.002, "encoder_lr": None},
        "callbacks": {"best": {"dirpath": "/runs/a/checkpoints"}},
        "contrast": {},
        **more,
    }


def changes(before: object, now: dict[str, Any]) -> str:
    return changed_settings("last.ckpt", {"protoseg": {"config": before}, "loops": {}}, now)


def test_what_is_taken_over_is_said() -> None:
    assert changes(config(), config(encoder={"freeze": False})) == ""  # a switch newer than the run, and off
    now = config(optimizer={"lr": 0.001, "encoder_lr": None}, trainer={"max_steps": 8}, overwrite=False)
    assert changes(config(), now) == "optimizer.lr 0.002 -> 0.001, trainer.max_steps null -> 8"


def test_another_folder_is_no_change() -> None:
    moved = config(resume="x", paths={"output": "/b"}, callbacks={"best": {"dirpath": "/b/checkpoints"}})
    assert changes(config(), moved) == ""


def test_what_cannot_be_taken_over_is_refused_by_name() -> None:
    with pytest.raises(ProtosegError, match=r"seed 0 -> 1 \(the batches.*contrast\._target_ null -> a\.B"):
        changes(config(), config(seed=1, contrast={"_target_": "a.B", "weight": 1}, optimizer={"lr": 1}))
    with pytest.raises(ProtosegError, match=r"new\.key null -> 1 \(it is not known"):
        changes(config(), config(new={"key": 1}))


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ("resume overwrite paths.output", SILENT),
        ("optimizer.lr optimizer.optimizer.betas schedule.power schedule.warmup_steps trainer.max_steps", SAID),
        ("trainer.devices callbacks.best.save_top_k logger.wandb.id inference.mode threads compile", SAID),
        ("data.num_workers data.source.num_workers data.root data.source.dataset.root data.timeout", SAID),
        ("data.crop_size data.scale data.photometric max_restarts data.val_batch_size max_pixels", SAID),
        ("loss.ce.weight loss.ppc.temperature contrast.reliable method.alpha method.terms.mixed.weight", SAID),
        ("encoder.grad_checkpointing head.momentum decoder.dropout", SAID),
    ],
)
def test_taken_over(keys: str, rule: str) -> None:
    assert {key: rule_of(key) for key in keys.split()} == dict.fromkeys(keys.split(), rule)


@pytest.mark.parametrize(
    "keys",
    [
        "seed data.seed data.batch_size data.source.batch_size data.relabel.Car data.mapping data._target_",
        "data.rare_classes.temperature data.dataset.style data.train_split encoder.name encoder.weights",
        "encoder.pretrained decoder.pyramid_channels segmentor._target_ head.num_prototypes head.logits head.init",
        "auxiliary optimizer.optimizer._target_ optimizer.optimizer.amsgrad trainer.accumulate_grad_batches",
        "method._target_ method.terms.masked._target_ loss.ce._target_ loss.ce.class_weights",
        "contrast._target_ contrast.queue_length contrast.dim",
    ],
)
def test_refused(keys: str) -> None:
    assert [key for key in keys.split() if rule_of(key) in (SAID, SILENT)] == []


@pytest.mark.parametrize("before", [None, "config", 3])
def test_no_config_is_one_error(before: object) -> None:
    with pytest.raises(ProtosegError, match="expected the run's config inside"):
        changes(before, config())


def test_a_strangers_config_is_only_printed() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ProtosegError, match="nested too deeply"):
        changes(config(optimizer=deep), config())
    said = changes(config(optimizer={"lr": "[red]\n${oc.env:HOME}" + "x" * 1000, "encoder_lr": None}), config())
    assert said.startswith(r"optimizer.lr '[red]\n${oc.env:HOME}xxx")
    assert len(said) < 120


def test_finished_is_a_training_whose_last_step_is_judged() -> None:
    due = {"callbacks": {"Restart": {"validation_due": True}}}
    assert is_finished({"global_step": 4, "callbacks": {}}, 4)
    assert not is_finished({"global_step": 3, "callbacks": {}}, 4)
    assert not is_finished({"global_step": 4, **due}, 4)
    for step in ("4", -1, None):
        with pytest.raises(ProtosegError, match="number of its steps"):
            is_finished({"global_step": step, "callbacks": {}}, 4)


def test_auto_does_not_start_anew_beside_other_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(ProtosegError, match=r"resume=auto: expected .*last\.ckpt.*but best\.ckpt beside it"):
        checkpoint_to_resume("auto", tmp_path / "last.ckpt")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert checkpoint_to_resume("auto", tmp_path / "last.ckpt") is None
