"""Images with masks of one or a few classes, for teaching these to a model that exists."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protoseg.data.class_file import ClassFile, MaskReading, UsedBy, used_values_of
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.files import BLACK, WHITE, Color
from protoseg.data.label_spaces import FILE_IGNORED, WIDE_FILE_IGNORED, Ids
from protoseg.data.pairing import by_image, by_stem, list_images, pair, stems_of_masks
from protoseg.types import LabelSpace, Names, ProtosegError, StrPath

REST = "(other)"


class ClassMasks(SegmentationDataset):
    """Images, masks of the same names (but for a constant end or beginning), and which pixels of these are which class.

    Folders of images and masks, subfolders included. Of ``ids`` in the masks, one for each class, others are "none of
    these", and 255 takes no part unless it is one. Masks of colours are read by ``colors``, others being none of these.
    Without ``ids``, and where no mask shows a colour of ``colors``: binary masks of one class, in which it is whatever
    is not 0 or black; 255 takes no part beside 1.

    Raises ProtosegError: folders that are missing, files that do not pair up, classes without colours or ids; masks
    that could be read in two ways (``class_file.decide``).
    """

    def __init__(
        self, images: StrPath, masks: StrPath, names: Names, colors: Sequence[Color], ids: Sequence[int] | None = None
    ) -> None:
        for what, given in (("colour", colors), ("id", ids)):
            if len(names) != (1 if given is None else len(given)) or len(set(names)) != len(names):
                there = "masks without ids" if given is None else len(given)
                got = f"{len(names)} classes ({', '.join(names)}) and {there}"
                remedy = "give --name, --color and --id once for each class (without --id binary masks of one)"
                raise ProtosegError(f"expected one {what} for each class, and no class twice, got {got}: {remedy}")
        if ids is not None and any(not 0 <= i < WIDE_FILE_IGNORED for i in ids):
            raise ProtosegError(f"expected ids from 0 to {WIDE_FILE_IGNORED - 1}, got {', '.join(map(str, ids))}")
        self.label_space = LabelSpace("new classes", (*names, REST), (*colors, BLACK))
        folders = (Path(images), Path(masks))
        for folder in folders:
            if not folder.is_dir():
                raise ProtosegError(f"expected a folder of images or masks, got {folder.absolute()}: no such folder")
        found = by_stem(folders[0], list_images(folders[0], recursive=True))
        where, others = f"{images} and {masks}", list_images(folders[1], recursive=True)
        labels, _ = by_image(found, stems_of_masks(folders[1], others, found), where, key="")
        super().__init__(pair(found, labels, where, folders), "train")
        paths = [mask for _, mask in self.samples if mask is not None]
        used = used_values_of(paths)
        shown = {color for _, found in used if found.ids is None for color in found.colors or ()}
        if ids is None and not shown.intersection(colors):
            self.id_table, self.colors = _of_binary(used)
        else:
            self.id_table = np.full(1 << 16, len(names), np.uint8)
            self.id_table[[FILE_IGNORED, WIDE_FILE_IGNORED]] = FILE_IGNORED
            self.id_table[list(ids or ())] = range(len(ids or ()))
            self.colors = dict.fromkeys((*shown, BLACK), len(names)) | {c: label for label, c in enumerate(colors)}
        said = {*(ids or ()), *(() if WHITE in colors and ids else (FILE_IGNORED, WIDE_FILE_IGNORED))}
        file = ClassFile(self.label_space, self.id_table, self.colors, frozenset(said), True, transparent=True)
        self.mask_reading = MaskReading(paths, file)


def _of_binary(used: UsedBy) -> tuple[Ids, dict[Color, int]]:
    """Label 0 for whatever is not 0 or black, else 1; 255 is ignored where it lies beside 1 and nothing else does."""
    table = np.zeros(1 << 16, np.uint8)
    table[0] = 1
    sets = [set(found.ids) for _, found in used if found.kind != "palette" and found.ids is not None]
    if {1, FILE_IGNORED} <= set().union(*sets) <= {0, 1, FILE_IGNORED}:
        if not any({1, FILE_IGNORED} <= ids for ids in sets):
            text = "masks: expected one value for the class, got masks of 0 and 1 and masks of 0 and 255"
            remedy = "keep the two sorts in folders of their own, or give --id 1 if 255 takes no part"
            raise ProtosegError(f"{text}: {remedy}")
        table[FILE_IGNORED] = FILE_IGNORED
    shown = {color for _, found in used if found.kind == "palette" or found.ids is None for color in found.colors or ()}
    return table, {color: int(color == BLACK) for color in shown} if BLACK in shown else {}
