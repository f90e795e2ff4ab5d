"""Images with masks of one or a few classes, for teaching these to a model that exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import Ids
from protoseg.data.masks import Color
from protoseg.data.pairing import by_key, list_images, pair, stem_in, stems_of_masks
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError

REST = "(other)"


class ClassMasks(SegmentationDataset):
    """Images, PNG masks of the same names, and which pixels of these are which class.

    Args:
        images: folder of images, subfolders included.
        masks: folder of masks of ids, in the same subfolders.
        names, colors: of the classes.
        ids: the id of each class in the masks; other ids are "none of these", 255 takes no part. None: binary masks of
            one class, in which it is whatever is not 0.
        split: any name; kept so that the class is called as the other data sets are.

    Raises:
        ProtosegError: folders that are missing, files that do not pair up, classes without colours or ids.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        names: Sequence[str],
        colors: Sequence[Color],
        ids: Sequence[int] | None = None,
        split: str = "train",
    ) -> None:
        for what, given in (("colour", colors), ("id", ids)):
            if len(names) != (1 if given is None else len(given)) or len(set(names)) != len(names):
                raise ProtosegError(
                    f"expected one {what} for each class, and no class twice, got {len(names)} classes "
                    f"({', '.join(names)}) and {'masks without ids' if given is None else f'{len(given)}'}: give "
                    "--name, --color and --id once for each class (--id may be left out for binary masks of one)"
                )
        if ids is not None and any(not 0 <= i < IGNORE_INDEX for i in ids):
            raise ProtosegError(f"expected ids from 0 to {IGNORE_INDEX - 1}, got {', '.join(map(str, ids))}")
        self.label_space = LabelSpace("new classes", (*names, REST), (*colors, (0, 0, 0)))
        self.id_table = _table(ids, len(names))
        folders = (Path(images), Path(masks))
        for folder in folders:
            if not folder.is_dir():
                raise ProtosegError(f"expected a folder of images or masks, got {folder.absolute()}: no such folder")
        found = by_key(list_images(folders[0], recursive=True), lambda path: stem_in(folders[0], path))
        labels = stems_of_masks(folders[1], found, recursive=True)
        super().__init__(pair(found, labels, f"{images} and {masks}", folders), split)


def _table(ids: Sequence[int] | None, rest: int) -> Ids:
    table = np.full(256, rest, dtype=np.uint8)
    if ids is None:
        table[1:] = 0
        return table
    table[IGNORE_INDEX] = IGNORE_INDEX
    table[list(ids)] = range(len(ids))
    return table
