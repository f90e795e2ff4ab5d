from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels

from protoseg.data.label_spaces import (
    ADE20K_150,
    CAMVID,
    CAMVID_TO_CITYSCAPES,
    CITYSCAPES,
    CITYSCAPES_TO_CAMVID,
    COCO_STUFF,
    FILE_IGNORED,
    MAPPINGS,
    SYNTHIA_13,
    SYNTHIA_16,
    UNKNOWN_ID,
    file_ids,
    id_table,
    mapping_table,
    named_mapping,
    read_ids,
)
from protoseg.types import LabelSpace, ProtosegError

ADE20K_IDS = read_ids("ade20k")
CAMVID_IDS = read_ids("camvid")
CITYSCAPES_IDS = read_ids("cityscapes")
COCO_STUFF_IDS = read_ids("coco_stuff")
CITYSCAPES_TRAIN_IDS = read_ids("cityscapes", "train")
GTA5_IDS = read_ids("cityscapes", "gta5")
SYNTHIA_IDS = read_ids("cityscapes", "synthia")


def test_camvid_table() -> None:
    assert CAMVID_IDS[:12].tolist() == [*range(11), FILE_IGNORED]
    assert (CAMVID_IDS[12:255] == UNKNOWN_ID).all()
    assert CAMVID_IDS[255] == FILE_IGNORED


@pytest.mark.parametrize("label", labels, ids=lambda label: label.name)
def test_cityscapes_is_what_cityscapesscripts_says(label: Any) -> None:
    train_id = FILE_IGNORED if label.ignoreInEval else label.trainId
    if label.id >= 0:
        assert CITYSCAPES_IDS[label.id] == train_id
    assert GTA5_IDS[34 if label.name == "license plate" else label.id] == train_id
    if not label.ignoreInEval:
        assert (CITYSCAPES.classes[train_id], CITYSCAPES.colors[train_id]) == (label.name, label.color)
        assert CITYSCAPES_TRAIN_IDS[label.trainId] == train_id
        assert file_ids(CITYSCAPES_IDS, 19)[train_id] == label.id
        # Signs and lights are things of DAFormer, but have no instances.
        things = label.hasInstances or label.name in ("traffic light", "traffic sign")
        assert (label.name in CITYSCAPES.things) == things


def test_cityscapes_table_knows_no_more() -> None:
    assert sum(not label.ignoreInEval for label in labels) == CITYSCAPES.num_classes == 19
    assert (CITYSCAPES_IDS[34:255] == UNKNOWN_ID).all()


@pytest.mark.parametrize(("space", "count"), [(CAMVID, 11), (CITYSCAPES, 19), (COCO_STUFF, 171), (ADE20K_150, 150)])
def test_names_and_colours_are_distinct(space: LabelSpace, count: int) -> None:
    assert len(set(space.classes)) == space.num_classes == count
    assert all(name == name.strip() for name in space.classes)
    assert all(0 <= value <= 255 for color in space.colors for value in color)
    twice = {name for name, color in zip(space.classes, space.colors, strict=True) if space.colors.count(color) > 1}
    assert twice == ({"road", "skyscraper"} if space is ADE20K_150 else set())  # so in its official colours


def test_id_table() -> None:
    table = id_table({3: 0, 9: 1})
    assert table.dtype == np.uint8
    assert table[[3, 9, 4, 255]].tolist() == [0, 1, UNKNOWN_ID, FILE_IGNORED]


def test_gta5_adds_the_licence_plate() -> None:
    assert GTA5_IDS[34] == FILE_IGNORED
    assert (np.flatnonzero(GTA5_IDS != CITYSCAPES_IDS) == [34]).all()


def test_train_ids_are_themselves() -> None:
    assert CITYSCAPES_TRAIN_IDS[:19].tolist() == list(range(19))
    assert CITYSCAPES_TRAIN_IDS[255] == FILE_IGNORED
    assert (CITYSCAPES_TRAIN_IDS[19:255] == UNKNOWN_ID).all()


def test_synthia_table() -> None:
    # Train ids as in the public converters.
    expected = {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 17: 12, 19: 15}
    expected[21] = 3
    assert {i: int(t) for i, t in enumerate(SYNTHIA_IDS[:23]) if t != FILE_IGNORED} == expected
    assert (SYNTHIA_IDS[23:255] == UNKNOWN_ID).all()


def test_synthia_subsets() -> None:
    assert len(SYNTHIA_16) == 16
    assert {CITYSCAPES.classes[t] for t in SYNTHIA_IDS[:23] if t != FILE_IGNORED} == set(SYNTHIA_16)
    assert len(SYNTHIA_13) == 13
    assert set(SYNTHIA_16) - set(SYNTHIA_13) == {"wall", "fence", "pole"}


def test_ade20k_table() -> None:
    assert ADE20K_IDS[0] == FILE_IGNORED
    assert ADE20K_IDS[1:151].tolist() == list(range(150))
    assert (ADE20K_IDS[151:255] == UNKNOWN_ID).all()
    for number, name in ((1, "wall"), (13, "person"), (44, "signboard"), (90, "television"), (150, "flag")):
        assert ADE20K_150.classes[number - 1] == name
    assert ADE20K_150.colors[0] == (120, 120, 120)
    assert ADE20K_150.colors[149] == (92, 0, 255)
    assert len(ADE20K_150.things) == 100
    assert {"person", "car", "bed", "pole"} < set(ADE20K_150.things)
    assert not {"wall", "sky", "tree", "road", "house"} & set(ADE20K_150.things)


def test_coco_stuff_table() -> None:
    # Numbers of labels.txt less 1; 12, 26, 29, 30, 45, 66, 68, 69, 71, 83 and 91 are not annotated.
    unused = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    known = np.flatnonzero(COCO_STUFF_IDS != UNKNOWN_ID).tolist()
    assert known == [i for i in range(182) if i not in unused] + [255]
    for number, name in ((1, "person"), (13, "stop sign"), (90, "toothbrush"), (92, "banner"), (149, "road")):
        assert COCO_STUFF.classes[COCO_STUFF_IDS[number - 1]] == name
    assert COCO_STUFF.things == COCO_STUFF.classes[:80]
    assert COCO_STUFF.classes[170] == "wood"
    assert file_ids(COCO_STUFF_IDS, 171).tolist() == known[:-1]


def test_file_ids_is_the_way_back() -> None:
    for table, count in ((CAMVID_IDS, 11), (CITYSCAPES_IDS, 19), (GTA5_IDS, 19), (ADE20K_IDS, 150)):
        assert table[file_ids(table, count)].tolist() == list(range(count))
    assert file_ids(id_table({3: 0, 9: 0, 5: 2}), 3).tolist() == [3, FILE_IGNORED, 5]


def test_mappings_between_camvid_and_cityscapes() -> None:
    forth = mapping_table(CAMVID, CITYSCAPES, CAMVID_TO_CITYSCAPES)
    back = mapping_table(CITYSCAPES, CAMVID, CITYSCAPES_TO_CAMVID)
    assert back[forth[:11]].tolist() == list(range(11))
    assert set(back[:19].tolist()) == set(range(11))
    assert named_mapping("camvid_to_cityscapes") is CAMVID_TO_CITYSCAPES
    assert named_mapping("cityscapes_to_camvid") is CITYSCAPES_TO_CAMVID
    with pytest.raises(ProtosegError, match=r"expected camvid_to_cityscapes or .* got 'x'"):
        named_mapping("x")
    assert len(MAPPINGS) == 2


def test_things() -> None:
    assert CAMVID.things == ("SignSymbol", "Car", "Pedestrian", "Bicyclist")
    assert [CITYSCAPES.classes.index(name) for name in CITYSCAPES.things] == [6, 7, 11, 12, 13, 14, 15, 16, 17, 18]


A = LabelSpace("a", ("road", "lorry", "sky"), ((0, 0, 0),) * 3)
B = LabelSpace("b", ("sky", "street"), ((0, 0, 0),) * 2)


def test_mapping_table() -> None:
    table = mapping_table(A, B, {"road": "street", "lorry": None, "sky": "sky"})
    assert table[[0, 1, 2]].tolist() == [1, FILE_IGNORED, 0]
    assert table[[UNKNOWN_ID, FILE_IGNORED]].tolist() == [UNKNOWN_ID, FILE_IGNORED]
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
