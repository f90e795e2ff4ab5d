from __future__ import annotations

import numpy as np
import pytest

from protoseg.data.label_spaces import CAMVID, CAMVID_IDS, CITYSCAPES, CITYSCAPES_IDS, UNKNOWN_ID, id_table
from protoseg.types import IGNORE_INDEX


def test_camvid_table() -> None:
    assert CAMVID_IDS[:12].tolist() == [*range(11), IGNORE_INDEX]
    assert (CAMVID_IDS[12:255] == UNKNOWN_ID).all()
    assert CAMVID_IDS[255] == IGNORE_INDEX


@pytest.mark.parametrize(
    ("name", "label_id"), [("road", 7), ("sky", 23), ("person", 24), ("train", 31), ("bicycle", 33)]
)
def test_cityscapes_table_maps_official_ids(name: str, label_id: int) -> None:
    assert CITYSCAPES.classes[CITYSCAPES_IDS[label_id]] == name


def test_cityscapes_table_ignores_the_other_ids() -> None:
    known = CITYSCAPES_IDS[:34]
    assert sorted(known[known != IGNORE_INDEX].tolist()) == list(range(19))
    assert CITYSCAPES_IDS[29] == IGNORE_INDEX  # caravan
    assert (CITYSCAPES_IDS[34:255] == UNKNOWN_ID).all()


@pytest.mark.parametrize("space", [CAMVID, CITYSCAPES])
def test_colours_are_distinct(space: object) -> None:
    assert len(set(space.colors)) == space.num_classes  # type: ignore[attr-defined]
    assert space.num_classes in (11, 19)  # type: ignore[attr-defined]


def test_id_table() -> None:
    table = id_table({3: 0, 9: 1})
    assert table.dtype == np.uint8
    assert table[[3, 9, 4, 255]].tolist() == [0, 1, UNKNOWN_ID, IGNORE_INDEX]
