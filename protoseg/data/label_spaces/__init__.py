"""Label spaces (classes, colours, things) and the tables from the ids stored in mask files to train ids.

The tables are the .tsv files beside this file; each opens with its source.
"""

from collections.abc import Mapping

from protoseg.data.label_spaces.tables import (
    UNKNOWN_ID,
    WIDE_UNKNOWN_ID,
    Ids,
    column,
    file_ids,
    id_table,
    mapping_table,
    read_classes,
    read_colors,
    read_ids,
    relabelled,
    unknown_id,
)
from protoseg.types import ProtosegError

ADE20K_150, ADE20K_IDS = read_classes("ade20k"), read_ids("ade20k")
ADE20K_FULL, ADE20K_FULL_IDS = read_classes("ade20k_full"), read_ids("ade20k_full")
CAMVID, CAMVID_IDS = read_classes("camvid"), read_ids("camvid")
CAMVID_VOID = 11
CITYSCAPES, CITYSCAPES_IDS = read_classes("cityscapes"), read_ids("cityscapes")
COCO_STUFF, COCO_STUFF_IDS = read_classes("coco_stuff"), read_ids("coco_stuff")
# Masks of Cityscapes' classes with other ids; those of ACDC and Dark Zurich named *_labelTrainIds.png have train ids.
CITYSCAPES_TRAIN_IDS, GTA5_IDS, SYNTHIA_IDS = (read_ids("cityscapes", name) for name in ("train", "gta5", "synthia"))

# What SYNTHIA has of Cityscapes' classes, and the 13 that older work reports: without wall, fence and pole.
SYNTHIA_16 = tuple(name for name in CITYSCAPES.classes if name not in ("terrain", "truck", "train"))
SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))

# Between the two (the built-in streets have CamVid's classes), for data.mapping.
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
