"""Cityscapes in its official layout, read without any preprocessing."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CITYSCAPES, CITYSCAPES_IDS


class Cityscapes(SegmentationDataset):
    """Cityscapes (Cordts et al., CVPR 2016): ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with the masks
    ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``, whose 34 ids are mapped to the 19 train ids while reading.

    2975 train, 500 val and 1525 test images, 2048 x 1024. https://www.cityscapes-dataset.com, after registration, for
    non-commercial research use.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``train``, ``val`` or ``test`` (whose public masks are all void).
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing or do not pair up.
    """

    label_space = CITYSCAPES
    id_table = CITYSCAPES_IDS
    source = (
        "Cityscapes (Cordts et al., CVPR 2016; leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip) is at "
        "https://www.cityscapes-dataset.com, after registration, for non-commercial research use."
    )

    def __init__(self, root: str | Path, split: str = "train", labels: bool = True) -> None:
        self.check_split(split)
        samples = self.pair_trees(
            Path(root) / "leftImg8bit" / split,
            "_leftImg8bit.png",
            Path(root) / "gtFine" / split if labels else None,
            "_gtFine_labelIds.png",
        )
        super().__init__(samples, split)
