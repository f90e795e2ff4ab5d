"""Label spaces (classes, colours, things) and the tables from the ids stored in mask files to train ids."""

from __future__ import annotations

from protoseg.data.label_spaces.driving import (
    CAMVID,
    CAMVID_IDS,
    CAMVID_TO_CITYSCAPES,
    CAMVID_VOID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_TO_CAMVID,
    CITYSCAPES_TRAIN_IDS,
    GTA5_IDS,
    MAPPINGS,
    SYNTHIA_13,
    SYNTHIA_16,
    SYNTHIA_IDS,
    named_mapping,
)
from protoseg.data.label_spaces.scenes import (
    ADE20K_150,
    ADE20K_FULL,
    ADE20K_FULL_IDS,
    ADE20K_IDS,
    COCO_STUFF,
    COCO_STUFF_IDS,
)
from protoseg.data.label_spaces.tables import (
    UNKNOWN_ID,
    WIDE_UNKNOWN_ID,
    Ids,
    file_ids,
    id_table,
    mapping_table,
    relabelled,
    unknown_id,
)

__all__ = [
    "ADE20K_150",
    "ADE20K_FULL",
    "ADE20K_FULL_IDS",
    "ADE20K_IDS",
    "CAMVID",
    "CAMVID_IDS",
    "CAMVID_TO_CITYSCAPES",
    "CAMVID_VOID",
    "CITYSCAPES",
    "CITYSCAPES_IDS",
    "CITYSCAPES_TO_CAMVID",
    "CITYSCAPES_TRAIN_IDS",
    "COCO_STUFF",
    "COCO_STUFF_IDS",
    "GTA5_IDS",
    "MAPPINGS",
    "SYNTHIA_13",
    "SYNTHIA_16",
    "SYNTHIA_IDS",
    "UNKNOWN_ID",
    "WIDE_UNKNOWN_ID",
    "Ids",
    "file_ids",
    "id_table",
    "mapping_table",
    "named_mapping",
    "relabelled",
    "unknown_id",
]
