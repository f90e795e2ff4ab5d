"""Cityscapes in its official layout, read without any preprocessing."""

from __future__ import annotations

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.files import by_key, list_images, pair
from protoseg.data.label_spaces import CITYSCAPES, CITYSCAPES_IDS

_IMAGE_END, _MASK_END = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(SegmentationDataset):
    """Cityscapes (Cordts et al., CVPR 2016): ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with the masks
    ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``, whose 34 ids are mapped to the 19 train ids while reading.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``train``, ``val`` or ``test`` (whose public masks are all void).

    Raises:
        ProtosegError: files that are missing or do not pair up.
    """

    label_space = CITYSCAPES
    id_table = CITYSCAPES_IDS
    source = (
        "Cityscapes (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip) is at "
        "https://www.cityscapes-dataset.com, after registration, for non-commercial research use."
    )

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.check_split(split)
        images, masks = Path(root) / "leftImg8bit" / split, Path(root) / "gtFine" / split
        self.check_folder(images)
        self.check_folder(masks)
        samples = pair(
            _by_city_and_name(images, _IMAGE_END),
            _by_city_and_name(masks, _MASK_END),
            where=f"Cityscapes: {images} and {masks}",
        )
        super().__init__(samples, split)


def _by_city_and_name(folder: Path, end: str) -> dict[str, Path]:
    paths = (p for p in list_images(folder, recursive=True) if p.name.endswith(end))
    return by_key(paths, lambda p: p.relative_to(folder).as_posix()[: -len(end)])
