"""Trainings that could learn nothing, or not be judged, are told before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from protoseg.checkpoint import read_checkpoint
from protoseg.data import AdaptationDataModule, CamVid, SegmentationDataModule, checking
from protoseg.data.statistics import class_statistics
from protoseg.run.train import run_training
from protoseg.types import LabelSpace, ProtosegError
from tests.conftest import TINY
from tests.data.helpers import Recorder, trainer

VOID = 11


def fill(dataset: CamVid, value: int, but: int = 0) -> None:
    """Make every mask one id, but for so many pixels of class 4 in the last mask."""
    for index, (_, mask) in enumerate(dataset.samples):
        ids = np.full((24, 32), value, np.uint8)
        if index == len(dataset) - 1:
            ids.flat[:but] = 4
        Image.fromarray(ids).save(str(mask))


def module(root: Path, **options: Any) -> SegmentationDataModule:
    return SegmentationDataModule(CamVid, 2, [16, 24], num_workers=0, root=str(root), **options)


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_good_masks(camvid: Path) -> None:
    module(camvid).setup("fit")


@pytest.mark.parametrize("kept", [False, True])
def test_no_labelled_pixel(camvid: Path, kept: bool) -> None:
    fill(CamVid(camvid, "train"), VOID)
    if kept:
        class_statistics(CamVid(camvid, "train"))
    with pytest.raises(ProtosegError, match=r"split 'train': expected labelled pixels, got \d+ masks in"):
        module(camvid).setup("fit")
    module(camvid, labels=False).setup("fit")


@pytest.mark.parametrize("kept", [False, True])
def test_nearly_all_ignored(camvid: Path, kept: bool) -> None:
    fill(CamVid(camvid, "train"), VOID, but=20)
    if kept:
        class_statistics(CamVid(camvid, "train"))
    with (
        pytest.warns(
            UserWarning, match=r"99\.\d% of the pixels of .* training masks are ignored: if these are no scribb"
        ),
        pytest.warns(UserWarning, match="training masks hold one class alone"),
    ):
        module(camvid).setup("fit")


@pytest.mark.filterwarnings("ignore:.*hold no pixel")
def test_scribbles_move_the_prototypes_of_their_classes(camvid: Path, configure: Callable[..., DictConfig]) -> None:
    for _, mask in CamVid(camvid, "train").samples:
        ids = np.full((24, 32), VOID, np.uint8)
        ids[4:7, 2:12], ids[16:20, 20:24] = 3, 5  # a stroke and a dot
        Image.fromarray(ids).save(str(mask))
    scribbled = ("data=camvid", f"data.root={camvid}", "data.crop_size=[24,32]", "data.scale=[1,1]")
    short = ("trainer.max_steps=2", "trainer.limit_val_batches=0", "schedule.warmup_steps=0")
    run_training(configure("train", *TINY, *scribbled, *short))
    state = read_checkpoint(camvid / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    (updates,) = (tensor for name, tensor in state.items() if name.endswith("head.memory.updates"))
    assert updates.any(1).nonzero().flatten().tolist() == [3, 5]


def test_one_class_alone(camvid: Path) -> None:
    fill(CamVid(camvid, "train"), 4)
    with pytest.warns(UserWarning, match=r"training masks hold one class alone, '\w+', of 11"):
        module(camvid).setup("fit")


@pytest.mark.parametrize("sample", [1, 64])
def test_a_class_without_a_pixel(camvid: Path, monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    """Known of all masks, also where few are looked at first: a class of the last mask alone is not missing."""
    monkeypatch.setattr(checking, "_LOOKED_AT", sample)
    data = CamVid(camvid, "train")
    fill(data, 3, but=1)
    with pytest.warns(UserWarning, match="hold no pixel") as found:
        checking.check_training_labels(data)
    (message,) = (str(warning.message) for warning in found)
    assert message.startswith(
        "the 7 training masks hold no pixel of 'Sky', 'Building', 'Pole', 'Tree', 'SignSymbol' and"
    )
    assert "'Sidewalk'" not in message


def test_kept_counts_are_used(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_statistics(CamVid(camvid, "train"))
    monkeypatch.setattr(checking, "count_pixels", None)
    module(camvid).setup("fit")


@pytest.mark.parametrize("labelled_pixels", [0, 1])
def test_a_few_masks_are_read_and_the_others_only_where_these_are_void(
    camvid: Path, monkeypatch: pytest.MonkeyPatch, labelled_pixels: int
) -> None:
    monkeypatch.setattr(checking, "_LOOKED_AT", 1)  # the first
    monkeypatch.setattr(checking, "_COUNTED", 0)
    data = CamVid(camvid, "train")
    fill(data, VOID, but=labelled_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if labelled_pixels:
            checking.check_training_labels(data)
        else:
            with pytest.raises(ProtosegError, match="every pixel is ignored"):
                checking.check_training_labels(data)
    fill(data, 3)
    read: list[int] = []
    original = CamVid.read_label
    monkeypatch.setattr(CamVid, "read_label", lambda self, index: read.append(index) or original(self, index))
    with pytest.warns(UserWarning, match="1 of the"):
        checking.check_training_labels(data)
    assert read == [0]


def test_a_single_class(folder: Path) -> None:
    space = LabelSpace("one", ("roof",), ((1, 2, 3),))
    data: Any = SimpleNamespace(label_space=space, parts=(), rest=None, id_table=np.zeros(1))
    with pytest.raises(ProtosegError, match="expected at least two to tell apart, got 'roof' alone: add a background"):
        checking.check_training_labels(data)


def test_validation_that_cannot_judge(camvid: Path, tmp_path: Path) -> None:
    fill(CamVid(camvid, "val"), VOID)
    message = r"split 'val': expected labelled pixels to validate on, got .*trainer\.limit_val_batches=0"
    with pytest.raises(ProtosegError, match=message):
        trainer(tmp_path, limit_val_batches=1.0).fit(Recorder(), module(camvid))
    trainer(tmp_path, limit_val_batches=0, max_steps=1).fit(Recorder(), module(camvid))
    fill(CamVid(camvid, "val"), VOID, but=1)
    trainer(tmp_path, limit_val_batches=1.0, max_steps=1).fit(Recorder(), module(camvid))
    data = module(camvid)
    data.dataset("val").drop_labels()  # images without masks
    with pytest.raises(ProtosegError, match=message):
        trainer(tmp_path, limit_val_batches=1.0).fit(Recorder(), data)


@pytest.mark.parametrize("part", ["source", "target"])
def test_adaptation_needs_labels_of_the_source_alone(camvid: Path, part: str) -> None:
    make: Callable[..., SegmentationDataModule] = partial(SegmentationDataModule, CamVid, root=str(camvid))
    names = {"source": {"train_split": "train"}, "target": {"train_split": "val", "val_split": "test"}}
    pair = AdaptationDataModule(
        partial(make, **names["source"]),
        partial(make, **names["target"]),
        batch_size=1,
        crop_size=[8, 8],
        num_workers=0,
    )
    fill(CamVid(camvid, names[part]["train_split"]), VOID)
    if part == "target":
        pair.setup("fit")
    else:
        with pytest.raises(ProtosegError, match="expected labelled pixels"):
            pair.setup("fit")
