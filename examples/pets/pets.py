"""The Oxford-IIIT Pet data set (Parkhi et al., CVPR 2012): where in the picture the cat or dog is."""

from __future__ import annotations

from pathlib import Path

from protoseg.data import SegmentationDataset
from protoseg.data.label_spaces import FILE_IGNORED, id_table
from protoseg.types import LabelSpace, ProtosegError


class Pets(SegmentationDataset):
    """7349 pictures of 37 breeds with trimaps: 1 pet, 2 background, 3 border, which is ignored.

    Args:
        root: folder with ``images/`` and ``annotations/``.
        split: ``trainval`` or ``test``, lists of the data set itself.
        labels: False lists the images alone.

    Raises:
        ProtosegError: unknown split, or files that are missing.
    """

    label_space = LabelSpace("pets", ("pet", "background"), ((220, 120, 60), (90, 90, 90)), things=("pet",))
    id_table = id_table({1: 0, 2: 1, 3: FILE_IGNORED})
    splits = ("trainval", "test")
    source = "Oxford-IIIT Pet (CC BY-SA 4.0): images and annotations from https://www.robots.ox.ac.uk/~vgg/data/pets/"

    def __init__(self, root: str | Path, split: str = "trainval", labels: bool = True) -> None:
        self.check_split(split)
        images, annotations = Path(root) / "images", Path(root) / "annotations"
        for folder in (images, annotations):
            self.check_folder(folder)
        names = [line.split()[0] for line in (annotations / f"{split}.txt").read_text().splitlines() if line.strip()]
        pairs = [(images / f"{name}.jpg", annotations / "trimaps" / f"{name}.png") for name in names]
        missing = [path for pair in pairs for path in (pair if labels else pair[:1]) if not path.is_file()]
        if missing:
            raise ProtosegError(f"Pets: expected the files of {split}.txt, got none at {missing[0]}; unpack it again")
        super().__init__([(image, mask if labels else None) for image, mask in pairs], split)
