"""Every data set through what train.py runs, for two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from protoseg.run.config import run_with_clear_errors
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from tests.conftest import TINY
from tests.data.helpers import DATASETS
from tests.data.layout_trees import TREES, fabricate, overrides

# Images of 32 x 24: their coarsest map is one pixel, of which FPN's GroupNorm can make nothing.
SMALL = [
    *(setting for setting in TINY if not setting.startswith("decoder.")),
    "decoder=fcn",
    "decoder.width=8",
    "data.crop_size=[32,32]",
    "trainer.max_steps=2",
]
SPLITS = {
    "cityscapes": ["data.val_split=train"],  # the fabricated tree has no other
    "dark_zurich": ["data.train_split=val"],
}


# The others differ in their files alone, which other tests read.
ALWAYS = ("camvid", "folder")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow]) for name in DATASETS]
)
def test_two_steps(name: str, request: pytest.FixtureRequest, configure: Callable[..., DictConfig]) -> None:
    root = request.getfixturevalue(name)
    run_training(configure("train", *SMALL, f"data={name}", f"data.root={root}", *SPLITS.get(name, [])))
    assert (root / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_two_steps_and_evaluation_of_a_layout(name: str, tmp_path: Path, configure: Callable[..., DictConfig]) -> None:
    splits = [split for split in fabricate(name, tmp_path) if split in ("train", "val")]
    settings = [f"data={TREES[name].config or name}", f"data.root={tmp_path}", *overrides(name)]
    settings += [f"data.train_split={splits[0]}", f"data.val_split={splits[-1]}"]
    run_training(configure("train", *SMALL, *settings))
    checkpoint, output = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "evaluated"
    run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", "num_workers=0", "device=cpu", output=output))
    assert (output / "metrics.json").is_file()


def test_evaluation_of_ones_own_folder_from_the_checkpoint_alone(
    folder: Path, configure: Callable[..., DictConfig]
) -> None:
    run_training(configure("train", *SMALL, "data=folder", f"data.root={folder}"))
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    output = folder / "evaluated"
    run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", "num_workers=0", "device=cpu", output=output))
    assert (output / "metrics.json").is_file()
    assert len([*(output / "overlays").rglob("*.jpg")]) == 1


def test_wrong_file_of_classes_is_one_message(
    folder: Path, configure: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "classes.yaml").write_text("classes: {ground: red}")
    cfg = configure("train", *SMALL, "data=folder", f"data.root={folder}")
    with pytest.raises(SystemExit):
        run_with_clear_errors(lambda: run_training(cfg), "train")
    message = capsys.readouterr().err
    assert message.startswith(f"error: {folder}/classes.yaml: expected ground: [red, green, blue]")
    assert message.count("\n") == 1
