"""COCO-Stuff 164k in its official layout, read without any preprocessing."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import COCO_STUFF, COCO_STUFF_IDS


class COCOStuff(SegmentationDataset):
    """COCO-Stuff 164k, 171 classes (Caesar, Uijlings, Ferrari, CVPR 2018): ``images/train2017/*.jpg`` with the
    pixelmaps ``annotations/train2017/*.png``, ``val2017`` likewise; 118287 train and 5000 val images.

    Pixelmaps hold 0 to 181 (the class's number less 1; 11 numbers are unused) and 255 (unlabelled, ignored).
    https://github.com/nightrome/cocostuff; annotations CC BY 4.0, images under Flickr's terms of use.

    Args:
        root: the folder that holds ``images`` (``train2017.zip`` and ``val2017.zip`` unpacked there) and
            ``annotations`` (``stuffthingmaps_trainval2017.zip`` unpacked there).
        split: ``train``, ``val``, or ``test`` (``images/test2017``; every pixel reads as ignored).
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing or do not pair up.
    """

    label_space = COCO_STUFF
    id_table = COCO_STUFF_IDS
    source = (
        "COCO-Stuff 164k (Caesar et al., CVPR 2018) is at https://github.com/nightrome/cocostuff: train2017.zip and "
        "val2017.zip belong into images/, stuffthingmaps_trainval2017.zip into annotations/. Annotations are CC BY "
        "4.0, images under Flickr's terms of use."
    )

    def __init__(self, root: str | Path, split: str = "train", labels: bool = True) -> None:
        self.check_split(split)
        masks = Path(root) / "annotations" / f"{split}2017" if labels and split != "test" else None
        super().__init__(self.pair_folders(Path(root) / "images" / f"{split}2017", masks), split)
