"""One data set as two: images that a list names, with their labels, and all others without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from protoseg.data import CAMVID, AdaptationDataModule, CamVid, SegmentationDataModule, SegmentationDataset
from protoseg.data.concat import ConcatDataModule
from protoseg.data.statistics import ClassStatistics
from protoseg.run.data import draw
from protoseg.types import ProtosegError

FEW = ["0006R0_f00000", "0001TP_000003"]


def part(root: Path, **options: Any) -> partial[SegmentationDataModule]:
    return partial(SegmentationDataModule, CamVid, photometric=False, root=str(root), **options)


def semi(root: Path, few: Any = FEW, **options: Any) -> AdaptationDataModule:
    parts = {"source": part(root, train_list=few), "target": part(root, train_list=few, listed=False)}
    return AdaptationDataModule(**parts, batch_size=2, crop_size=[16, 24], num_workers=0, **options)


def test_listed_images_have_labels_and_all_others_have_none(camvid: Path) -> None:
    data = semi(camvid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the two share no image
        data.setup("fit")
    labelled, rest = data.source.train_dataset(), data.target.train_dataset()
    assert sorted(labelled.names) == sorted(FEW)
    assert len(rest) == 5
    assert not {*rest.names} & {*FEW}
    assert all(mask is not None for _, mask in labelled.samples)
    assert all(mask is None for _, mask in rest.samples)
    assert data.source.class_statistics().counts.shape == (2, 11)
    assert len(data.target.dataset("val")) == 3  # judged on all of it


def test_without_a_list_the_two_share_their_images(camvid: Path) -> None:
    with pytest.warns(UserWarning, match=r"got 7 of 7 that the source has .* set data\.source\.root .* or train_list$"):
        semi(camvid, None).setup("fit")


def test_a_list_is_a_file_too(camvid: Path) -> None:
    file = camvid / "few.txt"
    file.write_text("\n".join(["# how it was drawn", *FEW, ""]))
    assert semi(camvid, str(file)).source.train_dataset().samples == semi(camvid).source.train_dataset().samples
    with pytest.raises(ProtosegError, match=r"nothing\.txt: expected the list"):
        semi(camvid, str(camvid / "nothing.txt")).source.train_dataset()


@pytest.mark.parametrize(
    ("few", "message"),
    [
        ([*FEW, "0006R0_f99999"], r"such as 00\w+, got 3, of which 1 are not there \(0006R0_f99999\): correct it"),
        (["# nothing"], "some of 7 images, such as .* got 0: correct"),
        ([f"0001TP_{i:06d}" if i % 2 else f"0006R0_f{i:05d}" for i in range(7)], "some of 7 .* got 7: correct"),
    ],
)
def test_a_list_of_others_of_none_or_of_all_is_refused(camvid: Path, few: list[str], message: str) -> None:
    for side in ("source", "target"):
        with pytest.raises(ProtosegError, match=rf"^train_list: expected .*{message}"):
            getattr(semi(camvid, few), side).train_dataset()


def test_a_name_that_begins_as_a_comment(tmp_path: Path) -> None:
    def kept(*lines: str) -> list[str]:
        data = SegmentationDataset([(tmp_path / f"{name}.png", None) for name in ("#1", "2", "3")], "train")
        (tmp_path / "few.txt").write_text("\n".join(lines))
        data.keep(str(tmp_path / "few.txt"), listed=True)
        return data.names

    assert kept("# 2 of 3", "#1", "2") == ["#1", "2"]
    assert kept("  # indented", "2") == ["2"]


def test_a_resumed_run_has_the_same_list(camvid: Path) -> None:
    state = semi(camvid).state_dict()
    semi(camvid, FEW[::-1]).load_state_dict(state)
    with pytest.raises(ProtosegError, match=r"data\.source: resume: expected train_list="):
        semi(camvid, [FEW[0], "0001TP_000001"]).load_state_dict(state)


def test_subfolders_are_part_of_a_name(tmp_path: Path) -> None:
    data = SegmentationDataset([(tmp_path / town / "0.png", None) for town in ("aachen", "ulm")], "train")
    assert data.names == ["aachen/0", "ulm/0"]
    data.keep(["ulm/0"], listed=False)
    assert data.names == ["aachen/0"]


def test_lists_of_folders_with_the_same_names_are_not_the_same(tmp_path: Path) -> None:
    def state(*names: str) -> Any:
        pairs = [(tmp_path / town / f"{i}.png", None) for town in ("aachen", "ulm") for i in range(2)]
        dataset: Any = lambda split: SegmentationDataset(pairs, split)  # noqa: E731
        data = SegmentationDataModule(dataset, 1, [8, 8], labels=False, label_space=CAMVID, train_list=names)
        return data.state_dict()["train_list"]

    assert state("ulm/0", "ulm/1") == state("ulm/1", "ulm/0") != state("aachen/0", "aachen/1")


def test_a_name_is_the_same_however_its_accents_are_written(tmp_path: Path) -> None:
    data = SegmentationDataset([(tmp_path / f"{name}.png", None) for name in ("Z\u00fcrich", "ulm")], "train")
    data.keep(["Zu\u0308rich"], listed=True)
    assert data.names == ["Z\u00fcrich"]


def test_a_part_of_several_has_a_list_of_its_own(camvid: Path) -> None:
    own = {"batch_size": 2, "crop_size": [16, 24], "num_workers": 0}
    parts = {"few": part(camvid, train_list=FEW)(**own), "all": part(camvid)(**own)}
    assert len(ConcatDataModule(parts, [16, 24], batch_size=2).train_dataset()) == 9
    others = {"few": part(camvid, train_list=[FEW[0], "0001TP_000001"])(**own), "all": part(camvid)(**own)}
    states = [ConcatDataModule(each, [16, 24], batch_size=2).state_dict()["train_list"] for each in (parts, others)]
    assert states[0] != states[1]
    assert ConcatDataModule({"all": part(camvid)(**own)}, [16, 24], batch_size=2).state_dict()["train_list"] is None
    with pytest.raises(ProtosegError, match="expected train_list of each part"):
        ConcatDataModule(parts, [16, 24], batch_size=2, train_list=FEW)


def drawn(counts: Any, number: int, seed: int) -> list[int]:
    counts = np.asarray(counts)
    return ClassStatistics(CAMVID.classes, tuple(map(str, range(len(counts)))), counts).draw(number, seed)


def test_every_class_that_occurs_is_drawn() -> None:
    counts = np.zeros((40, 5), np.int64)
    counts[:, 0] = 100
    counts[[3, 17], 1] = 50, 1  # of these two, that which shows more
    counts[np.arange(40) % 5 == 0, 2] = 9
    counts[22, 3] = 1  # the only one, however little it shows; class 4 is nowhere
    draws = [drawn(counts, 5, seed) for seed in range(100)]
    assert all({3, 22} <= {*found} and len({*found}) == 5 and found == sorted(found) for found in draws)
    assert all((counts[found] > 0).any(0).tolist() == [True] * 4 + [False] for found in draws)
    assert draws == [drawn(counts, 5, seed) for seed in range(100)]
    assert {i for found in draws for i in found} == {*range(40)}
    with pytest.raises(ProtosegError, match="expected at least 3 images, to show every class, got 2"):
        drawn(counts, 2, 0)


def test_the_shipped_list_of_few_labels_is_what_is_drawn(tmp_path: Path, configure: Callable[..., DictConfig]) -> None:
    draw(configure("train", "data=streets"), "streets", Fraction(1, 8), 0, tmp_path / "few.txt")
    names = [line for line in (tmp_path / "few.txt").read_text().splitlines() if not line.startswith("#")]
    assert configure("train", "data=semi").data.source.train_list == names
