from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protoseg import distributed
from protoseg.data import CamVid, RareClasses, SegmentationDataModule
from protoseg.data.loading import RareClassDraw, sample_seed
from protoseg.data.statistics import ClassStatistics, rare_class_probability
from protoseg.data.transforms import TrainTransform, Wanted
from protoseg.types import ProtosegError
from tests.data.helpers import batches, equal

COUNTS = np.array([[500, 0, 90], [400, 60, 0], [450, 5, 30], [600, 0, 40]])
STATISTICS = ClassStatistics(("road", "sign", "car"), ("a", "b", "c", "d"), COUNTS)


def test_draws_follow_the_probability_and_take_images_with_enough() -> None:
    draw = RareClassDraw(STATISTICS, RareClasses(temperature=0.5, min_pixels=4, min_crop_ratio=0.25))
    draws = [draw(sample_seed(0, position)) for position in range(4000)]
    classes = np.array([wanted.train_id for _, wanted in draws])
    share = np.bincount(classes, minlength=3) / len(draws)
    np.testing.assert_allclose(share, rare_class_probability(COUNTS.sum(0), 0.5), atol=0.03)
    assert {wanted.pixels for _, wanted in draws} == {1.0}
    for train_id, images in ((0, [0, 1, 2, 3]), (1, [1, 2]), (2, [0, 2, 3])):
        drawn = np.array([index for index, wanted in draws if wanted.train_id == train_id])
        np.testing.assert_allclose(
            np.bincount(drawn, minlength=4) / len(drawn), np.isin(range(4), images) / len(images), atol=0.04
        )


def test_a_draw_depends_on_the_seed_alone() -> None:
    options = RareClasses(min_pixels=4)
    first, second = RareClassDraw(STATISTICS, options), RareClassDraw(STATISTICS, options)
    seeds = [sample_seed(0, position) for position in range(50)]
    assert [first(seed) for seed in seeds] == [second(seed) for seed in reversed(seeds)][::-1]


def test_more_than_min_pixels_means_more() -> None:
    assert RareClassDraw(STATISTICS, RareClasses(min_pixels=59)).images[1].tolist() == [1]
    with pytest.raises(
        ProtosegError, match=r"more than 60 pixels of it, got at most 60 of sign: set .*min_pixels to 59 or less"
    ):
        RareClassDraw(STATISTICS, RareClasses(min_pixels=60))
    with pytest.raises(ProtosegError, match=r"600 of road, 60 of sign, 90 of car: set .*min_pixels to 59 or less"):
        RareClassDraw(STATISTICS, RareClasses(temperature=10, min_pixels=3000))


def test_a_class_that_does_not_occur_is_never_drawn() -> None:
    absent = ClassStatistics(STATISTICS.classes, STATISTICS.names, COUNTS * [1, 0, 1])
    draw = RareClassDraw(absent, RareClasses(temperature=1, min_pixels=10))
    assert {draw(seed)[1].train_id for seed in range(200)} == {0, 2}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"min_pixels": -1}, {"min_crop_ratio": -0.5}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ProtosegError, match="rare_classes: expected a temperature above 0"):
        RareClasses(**options)


# The crop


def small_object() -> np.ndarray:
    label = np.zeros((120, 120), np.uint8)
    label[50:60, 50:60] = 1
    return label


def test_crop_holds_the_class() -> None:
    label = small_object()
    image = np.repeat(label[..., None], 3, axis=2)
    transform = TrainTransform((40, 40), scale=(1, 1), photometric=False)
    plain = [(transform(image, label, s)[1] == 1).sum() > 50 for s in range(100)]
    held = [(transform(image, label, s, Wanted(1, 50))[1] == 1).sum() > 50 for s in range(100)]
    assert np.mean(plain) < 0.3 < 0.8 < np.mean(held)
    # A class that is not there: the last draw stands.
    assert transform(image, label, 0, Wanted(7, 50))[1].shape == (40, 40)
    # And what was wanted is forgotten at the next call.
    assert [(transform(image, label, s)[1] == 1).sum() > 50 for s in range(100)] == plain


def test_a_crop_that_holds_it_already_stays() -> None:
    label = small_object()
    image = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    transform = TrainTransform((40, 40))
    kept = 0
    for seed in range(60):
        plain = transform(image, label, seed)
        if (plain[1] == 1).sum() > 10:
            kept += 1
            wanted = transform(image, label, seed, Wanted(1, 10))
            assert np.array_equal(plain[0], wanted[0])
            assert np.array_equal(plain[1], wanted[1])
    assert kept > 5


def test_both_conditions_of_a_crop() -> None:
    label = small_object()
    label[:, 60:] = 2  # so that balanced crops exist
    image = np.repeat(label[..., None], 3, axis=2)
    transform = TrainTransform((40, 40), scale=(1, 1), photometric=False, max_class_share=0.75)
    crops = [transform(image, label, s, Wanted(1, 50))[1] for s in range(60)]
    assert np.mean([(crop == 1).sum() > 50 and (crop == 0).mean() <= 0.75 for crop in crops]) > 0.9


# The stream


@pytest.fixture
def rare(tmp_path: Path, write_image: Callable[..., None]) -> Path:
    """Six images of road; the last two with a sign of 6 x 6, the last with a car of 3 x 3."""
    import cv2

    for i in range(6):
        write_image(tmp_path / "train" / f"{i}.png", 48, 64, seed=i)
        mask = np.full((48, 64), 3, np.uint8)
        if i >= 4:
            mask[5:11, 5:11] = 6
        if i == 5:
            mask[40:43, 50:53] = 8
        (tmp_path / "trainannot").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "trainannot" / f"{i}.png"), mask)
    return tmp_path


def module(root: Path, rare_classes: RareClasses | None, **options: Any) -> SegmentationDataModule:
    defaults: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "scale": [1, 1], "photometric": False}
    return SegmentationDataModule(
        CamVid, crop_size=[24, 32], root=str(root), rare_classes=rare_classes, **{**defaults, **options}
    )


OPTIONS = RareClasses(temperature=0.02, min_pixels=8, min_crop_ratio=0.5)


def test_the_stream_is_rich_in_rare_classes(rare: Path) -> None:
    plain, often = batches(module(rare, None), 40), batches(module(rare, OPTIONS), 40)
    names = [Path(name).stem for batch in often for name in batch.name]
    assert set(names) <= {"4", "5"}  # T is small: road is hardly ever drawn
    assert names.count("5") > 50
    held = [bool(((label == 6).sum() > 4) | ((label == 8).sum() > 4)) for batch in often for label in batch.label]
    assert np.mean(held) > 0.8
    assert np.mean([bool((label != 3).any()) for batch in plain for label in batch.label]) < 0.4


def test_batches_do_not_depend_on_workers_ranks_or_start(rare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = batches(module(rare, OPTIONS, batch_size=4))
    assert equal(batches(module(rare, OPTIONS, batch_size=4, num_workers=2)), reference)
    assert not equal(batches(module(rare, OPTIONS, batch_size=4, seed=1)), reference)
    data = module(rare, OPTIONS, batch_size=4)
    data.load_state_dict({**module(rare, OPTIONS, batch_size=4).state_dict(), "batches": 2})
    assert equal(batches(data), reference[2:])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(batches(module(rare, OPTIONS)))
    joined = [torch.cat([a.image, b.image]) for a, b in zip(*parts, strict=True)]
    assert all(torch.equal(x, y.image) for x, y in zip(joined, reference, strict=True))


def test_resume_refuses_other_options(rare: Path) -> None:
    state = module(rare, OPTIONS).state_dict()
    with pytest.raises(ProtosegError, match=r"expected rare_classes={'temperature': 0.02.* got rare_classes=None"):
        module(rare, None).load_state_dict(state)
    del state["rare_classes"]  # a checkpoint of before there was any
    module(rare, None).load_state_dict(state)


def test_too_few_pixels_are_told(rare: Path) -> None:
    with pytest.raises(ProtosegError, match=r"got at most 36 of SignSymbol, 9 of Car: .*min_pixels to 8 or less"):
        batches(module(rare, RareClasses()))


def test_labels_are_needed(rare: Path) -> None:
    for options in ({"rare_classes": OPTIONS}, {"rare_classes": None, "max_class_share": 0.75}):
        with pytest.raises(ProtosegError, match="nor rare_classes without labels"):
            module(rare, labels=False, **options)  # type: ignore[arg-type]
