"""The classes that the renderer draws, and their ids in the label spaces it writes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protoseg.data.label_spaces import CAMVID, CITYSCAPES, CITYSCAPES_TO_CAMVID, FILE_IGNORED, mapping_table
from protoseg.types import LabelSpace

# Cityscapes' 19 classes in their order, then what neither label space names.
VOID = len(CITYSCAPES.classes)
(
    ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, PLANT, GRASS,
    SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE,
) = range(VOID)  # fmt: skip


class LabelFormat(NamedTuple):
    """``label_space`` and ``table``: label of the renderer -> id in the file, 256 entries; train ids, and ``void``."""

    label_space: LabelSpace
    table: NDArray[np.uint8]
    void: int


def _format(space: LabelSpace, train_ids: NDArray[np.uint8], void: int) -> LabelFormat:
    table = np.full(256, void, np.uint8)
    table[:VOID] = train_ids[:VOID]
    return LabelFormat(space, table, void)


FORMATS = {
    "camvid": _format(CAMVID, mapping_table(CITYSCAPES, CAMVID, CITYSCAPES_TO_CAMVID), 11),  # void: SegNet's id
    "cityscapes": _format(CITYSCAPES, np.arange(256, dtype=np.uint8), FILE_IGNORED),
}
