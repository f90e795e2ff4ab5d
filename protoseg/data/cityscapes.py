"""Cityscapes, and the rendered sets that share its classes, in their official layouts, without any preprocessing."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CITYSCAPES, CITYSCAPES_IDS, GTA5_IDS, SYNTHIA_IDS

_INVALID = ("15188", "17705")  # of GTA5, known to be; others leave them out too


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


class GTA5(SegmentationDataset):
    """GTA5 (Richter et al., "Playing for Data", ECCV 2016): ``images/*.png`` with the palette PNGs ``labels/*.png``,
    which hold Cityscapes' label ids. All 24966 images but two invalid ones (15188, 17705) are ``train``.

    https://download.visinf.tu-darmstadt.de/data/from_games/, for research and educational use.

    Args:
        root: the folder that holds ``images`` and ``labels``, the ten parts together.
        split: ``train``.
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing or do not pair up.
    """

    label_space = CITYSCAPES
    id_table = GTA5_IDS
    splits = ("train",)
    source = (
        "GTA5 (Richter et al., Playing for Data, ECCV 2016: ten parts of images and labels) is at "
        "https://download.visinf.tu-darmstadt.de/data/from_games/, for research and educational use."
    )

    def __init__(self, root: str | Path, split: str = "train", labels: bool = True) -> None:
        self.check_split(split)
        samples = self.pair_folders(Path(root) / "images", Path(root) / "labels" if labels else None)
        super().__init__([sample for sample in samples if sample[0].stem not in _INVALID], split)


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
