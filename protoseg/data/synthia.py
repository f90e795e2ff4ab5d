"""SYNTHIA-RAND-CITYSCAPES in its official layout, read without any preprocessing."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CITYSCAPES, SYNTHIA_IDS


class Synthia(SegmentationDataset):
    """SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9400 images ``RGB/*.png`` with the 16-bit colour PNGs
    ``GT/LABELS/*.png``, whose first channel is the class id (the second is the instance).

    16 of Cityscapes' 19 classes occur (``label_spaces.SYNTHIA_16``): no terrain, truck or train.
    http://synthia-dataset.net/downloads/, for non-commercial research use.

    Args:
        root: the folder ``RAND_CITYSCAPES``, which holds ``RGB`` and ``GT``.
        split: ``train``.
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing or do not pair up.
    """

    label_space = CITYSCAPES
    id_table = SYNTHIA_IDS
    id_channel = 0
    splits = ("train",)
    source = (
        "SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016) is at http://synthia-dataset.net/downloads/, for "
        "non-commercial research use."
    )

    def __init__(self, root: str | Path, split: str = "train", labels: bool = True) -> None:
        self.check_split(split)
        masks = Path(root) / "GT" / "LABELS"
        super().__init__(self.pair_folders(Path(root) / "RGB", masks if labels else None), split)
