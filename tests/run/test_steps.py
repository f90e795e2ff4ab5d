"""Short trainings and those counted in epochs; what a training says of its cost; a run that explains itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from protoseg import cli
from protoseg.callbacks import ProgressBar, Throughput
from protoseg.evaluation.curves import read_log
from protoseg.run.build import build_datamodule
from protoseg.run.train import explain_folder, run_training, set_steps
from protoseg.types import Batch, ProtosegError
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("words", "steps", "warmup", "said"),
    [
        (["trainer.max_steps=2"], 2, 0, "schedule.warmup_steps=20 is shortened to 0 for a training of 2"),
        (["trainer.max_steps=20"], 20, 2, "shortened to 2 for a training of 20"),
        (["trainer.max_steps=21"], 21, 20, ""),
        (["trainer.fast_dev_run=true"], 1, 0, "for a training of 1"),
        # The built-in scenes have 200 images to train on by day: 3 epochs of 2 x 8.
        (["trainer.max_epochs=3", "trainer.accumulate_grad_batches=2"], 38, 20, "trainer.max_epochs=3 is trainer.max"),
        (["trainer.max_epochs=1", "data=streets_day_to_dusk", "data.batch_size=50"], 4, 0, "200 images, 50 a step"),
    ],
)
def test_steps_and_warm_up(
    words: list[str], steps: int, warmup: int, said: str, configure: Callable[..., DictConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cfg = configure("train", "trainer.accelerator=cpu", *words)
    set_steps(cfg, build_datamodule(cfg))
    assert (cfg.trainer.max_steps, cfg.trainer.max_epochs, cfg.schedule.warmup_steps) == (steps, -1, warmup)
    output = capsys.readouterr().out
    assert said in " ".join(output.split())
    assert said or not output


def test_the_cost_is_told_once_after_10_steps(capsys: pytest.CaptureFixture[str]) -> None:
    throughput, module = Throughput(), SimpleNamespace(log=lambda *_, **__: None)
    trainer: Any = SimpleNamespace(
        global_step=0, max_steps=3610, world_size=1, accumulate_grad_batches=1, is_global_zero=True
    )
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.zeros(2, 2), ["a", "b"])
    throughput.on_train_start(trainer, module)  # type: ignore[arg-type]
    said = []
    for step in range(1, 25):
        trainer.global_step, throughput._seconds_per_image = step, 0.5
        throughput._last = throughput._last and throughput._last  # the steps themselves take no time here
        throughput.on_train_batch_end(trainer, module, None, batch, step)
        said += [(step, line) for line in capsys.readouterr().out.splitlines()]
    ((step, line),) = said
    assert step == 10
    # 0.9 of half a second for each of two images
    assert line.startswith("1.11 steps/s, 0:54:00 left without validations, ")
    assert " GB of memory" in line


def test_a_run_explains_itself(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- data=camvid\n- paths.data=${paths.output}\n- seed=3\n")
    rows = [("best val mIoU", "0.5000"), ("metrics", str(tmp_path / "logs" / "metrics.csv"))]
    for score in ("0.5000", "0.6000"):
        rows[0] = (rows[0][0], score)
        explain_folder(tmp_path, rows)
        text = (tmp_path / "README.md").read_text()
        assert "    protoseg train data=camvid 'paths.data=${paths.output}' seed=3\n" in text
        assert f"| best val mIoU | {score} |" in text
        assert "| logs/metrics.csv |" in text
    (tmp_path / "README.md").write_text("mine")
    explain_folder(tmp_path, rows)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("quote", ["", '"'])
def test_an_evaluation_lies_beside_its_run(
    quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., DictConfig]
) -> None:
    (tmp_path / "a=b" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("PROTOSEG_RUN", "elsewhere")  # is restored after the test
    monkeypatch.setattr(cli, "_run", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["e", f"ckpt_path={quote}{tmp_path}/a=b/checkpoints/best.ckpt{quote}"])
    cli.evaluate()
    assert os.environ["PROTOSEG_RUN"] == str(tmp_path / "a=b")
    monkeypatch.setattr(sys, "argv", ["e", "ckpt_path=alone.ckpt"])
    cli.evaluate()  # in the same process, as a notebook does
    assert "PROTOSEG_RUN" not in os.environ


def test_short_words_of_the_tests_are_left_alone(
    configure: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configure("train", *TINY)
    before = cfg.copy()
    set_steps(cfg, None)
    assert cfg == before
    assert capsys.readouterr().out == ""


def test_the_bar_counts_all_batches_of_the_training() -> None:
    bar: Any = ProgressBar()
    bar._trainer = SimpleNamespace(max_steps=6, accumulate_grad_batches=3, global_step=4)
    assert bar.total_train_batches == 18


def test_a_precision_without_fp32_is_refused(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(ProtosegError, match=r"trainer.precision: expected one of 32-true, bf16-mixed"):
        run_training(configure("train", *TINY, "trainer.precision=bf16-true"))


def test_the_score_is_miou_and_a_limit_of_time_is_of_each_start(
    configure: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by = ("callbacks.best.monitor=val/pixel_accuracy", "trainer.val_check_interval=1", "+trainer.max_time=00:01:00:00")
    score = run_training(configure("train", *TINY, *by, "trainer.max_steps=2"))
    rows = read_log(tmp_path / "run")
    assert score == max(float(row["val/mIoU"]) for row in rows if "val/mIoU" in row)
    assert score != max(float(row["val/pixel_accuracy"]) for row in rows if "val/pixel_accuracy" in row)

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"] = 1e6
    torch.save(checkpoint, last)
    capsys.readouterr()
    run_training(configure("train", *TINY, *by, "trainer.max_steps=3", "resume=auto"))
    assert "3 of 3 in " in capsys.readouterr().out
