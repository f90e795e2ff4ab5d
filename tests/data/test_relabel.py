"""``data.relabel``: classes that are left out, merged or renamed while the masks stay as they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from protoseg.data import CAMVID, AdaptationDataModule, CamVid, SegmentationDataModule
from protoseg.data.label_spaces import relabelled
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError
from tests.data.helpers import batches

SPACE = LabelSpace("toy", ("bus", "car", "sky", "person"), ((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)), ("bus", "car"))


def module(root: Path, **options: object) -> SegmentationDataModule:
    return SegmentationDataModule(CamVid, 2, [16, 24], num_workers=0, root=str(root), **options)  # type: ignore[arg-type]


def test_left_out() -> None:
    space, mapping = relabelled(SPACE, {"car": None})
    assert space == LabelSpace("toy", ("bus", "sky", "person"), ((1, 0, 0), (3, 0, 0), (4, 0, 0)), ("bus",))
    assert mapping == {"bus": "bus", "car": None, "sky": "sky", "person": "person"}


def test_merged_into_one_of_them_or_into_a_new_one() -> None:
    one, _ = relabelled(SPACE, {"bus": "car"})
    assert (one.classes, one.colors[0], one.things) == (("car", "sky", "person"), (2, 0, 0), ("car",))
    new, _ = relabelled(SPACE, {"car": "vehicle", "bus": "vehicle"})
    assert (new.classes, new.colors[0], new.things) == (("vehicle", "sky", "person"), (1, 0, 0), ("vehicle",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dog": None}, r"expected classes of 'toy' \(bus, car, sky, person\).* got no class of it: dog"),
        (dict.fromkeys(SPACE.classes), "got nothing but null, which leaves no class"),
    ],
)
def test_wrong_changes(changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        relabelled(SPACE, changes)


def test_masks_read_as_the_classes_that_are_left(camvid: Path) -> None:
    plain, changed = module(camvid), module(camvid, relabel={"Car": None, "Bicyclist": "Pedestrian"})
    names = tuple(name for name in CAMVID.classes if name not in ("Car", "Bicyclist"))
    assert changed.label_space.classes == names
    before, after = plain.dataset("train").read(0)[1], changed.dataset("train").read(0)[1]
    assert len(np.unique(before)) > 3
    for train_id, name in enumerate(CAMVID.classes):
        new = {"Car": 255, "Bicyclist": names.index("Pedestrian")}.get(name)
        assert (after[before == train_id] == (names.index(name) if new is None else new)).all()
    assert (after[before == 255] == 255).all()
    assert len(changed.class_frequencies()) == len(names)
    labels = {i for batch in batches(changed) for i in batch.label.unique().tolist()}
    assert labels <= {*range(len(names)), IGNORE_INDEX}


def test_a_source_is_mapped_after_that(camvid: Path) -> None:
    part = partial(SegmentationDataModule, CamVid, root=str(camvid))
    without = {"Car": None}
    data = AdaptationDataModule(
        partial(part, relabel=without), partial(part, relabel=without), batch_size=1, crop_size=[16, 24]
    )
    assert "Car" not in data.label_space.classes
    alone = module(camvid, relabel=without)
    assert np.array_equal(data.source.dataset("train").read(0)[1], alone.dataset("train").read(0)[1])
    with pytest.raises(ProtosegError, match="expected the same classes"):
        AdaptationDataModule(partial(part, relabel=without), part, batch_size=1, crop_size=[16, 24])


def test_the_name_of_a_mapping_between_data_sets_is_no_change() -> None:
    with pytest.raises(ProtosegError, match=r"relabel: expected \{CLASS: CLASS or null\}, got 'camvid_to_cityscapes'"):
        relabelled(SPACE, "camvid_to_cityscapes")  # type: ignore[arg-type]
