from __future__ import annotations

import numpy as np
import pytest

from protoseg.data.label_spaces import (
    CAMVID,
    CAMVID_IDS,
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    GTA5_IDS,
    SYNTHIA_13,
    SYNTHIA_16,
    SYNTHIA_IDS,
    UNKNOWN_ID,
    id_table,
    mapping_table,
)
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError


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


def test_gta5_adds_the_licence_plate() -> None:
    assert GTA5_IDS[34] == IGNORE_INDEX
    assert (np.flatnonzero(GTA5_IDS != CITYSCAPES_IDS) == [34]).all()


def test_train_ids_are_themselves() -> None:
    assert CITYSCAPES_TRAIN_IDS[:19].tolist() == list(range(19))
    assert CITYSCAPES_TRAIN_IDS[255] == IGNORE_INDEX
    assert (CITYSCAPES_TRAIN_IDS[19:255] == UNKNOWN_ID).all()


def test_synthia_table() -> None:
    # Train ids as in the public converters.
    expected = {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 17: 12, 19: 15}
    expected[21] = 3
    assert {i: int(t) for i, t in enumerate(SYNTHIA_IDS[:23]) if t != IGNORE_INDEX} == expected
    assert (SYNTHIA_IDS[23:255] == UNKNOWN_ID).all()


def test_synthia_subsets() -> None:
    assert len(SYNTHIA_16) == 16
    assert {CITYSCAPES.classes[t] for t in SYNTHIA_IDS[:23] if t != IGNORE_INDEX} == set(SYNTHIA_16)
    assert len(SYNTHIA_13) == 13
    assert set(SYNTHIA_16) - set(SYNTHIA_13) == {"wall", "fence", "pole"}


def test_things() -> None:
    assert CAMVID.things == ("SignSymbol", "Car", "Pedestrian", "Bicyclist")
    assert [CITYSCAPES.classes.index(name) for name in CITYSCAPES.things] == [6, 7, 11, 12, 13, 14, 15, 16, 17, 18]


A = LabelSpace("a", ("road", "lorry", "sky"), ((0, 0, 0),) * 3)
B = LabelSpace("b", ("sky", "street"), ((0, 0, 0),) * 2)


def test_mapping_table() -> None:
    table = mapping_table(A, B, {"road": "street", "lorry": None, "sky": "sky"})
    assert table[[0, 1, 2]].tolist() == [1, IGNORE_INDEX, 0]
    assert table[[UNKNOWN_ID, IGNORE_INDEX]].tolist() == [UNKNOWN_ID, IGNORE_INDEX]
    assert mapping_table(A, A, None).tolist() == list(range(256))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, r"got 'a' \(road, lorry, sky\) and 'b' \(sky, street\): give data\.mapping"),
        ({"road": "street", "sky": "sky"}, "every class of 'a' .* got none for lorry"),
        ({"road": "lane", "lorry": None, "sky": "sky"}, "got no class of theirs: lane"),
        ({"road": "sky", "lorry": None, "sky": "sky", "tree": None}, "got no class of theirs: tree"),
    ],
)
def test_mapping_that_does_not_fit(mapping: dict[str, str | None] | None, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        mapping_table(A, B, mapping)
