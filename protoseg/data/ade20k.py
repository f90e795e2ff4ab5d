"""ADE20K in its official layouts, read without any preprocessing: the scene parsing benchmark, the full annotations."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import ADE20K_150, ADE20K_FULL, ADE20K_FULL_IDS, ADE20K_IDS
from protoseg.data.label_spaces.tables import WIDE_FILE_IGNORED
from protoseg.types import LabelSpace, ProtosegError

NUM_CLASSES = (847, 700, 500, 300)
_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


class ADE20K(SegmentationDataset):
    """ADE20K, 150 classes (Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017): ``images/training/*.jpg``
    with the masks ``annotations/training/*.png``, ``validation`` likewise; 20210 train and 2000 val images.

    Masks hold 0 for other objects (ignored) and 1 to 150. For non-commercial research and education, from
    http://sceneparsing.csail.mit.edu: http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip

    Args:
        root: the folder ``ADEChallengeData2016``, which holds ``images`` and ``annotations``.
        split: ``train``, ``val``, or ``test`` (images put into ``images/testing``; every pixel reads as ignored).
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing or do not pair up.
    """

    label_space = ADE20K_150
    id_table = ADE20K_IDS
    source = (
        "ADE20K's scene parsing benchmark (Zhou et al., CVPR 2017) is "
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip of "
        "http://sceneparsing.csail.mit.edu, for non-commercial research and education."
    )

    def __init__(self, root: str | Path, split: str = "train", labels: bool = True) -> None:
        self.check_split(split)
        folder = _FOLDERS[split]
        masks = Path(root) / "annotations" / folder if labels and split != "test" else None
        super().__init__(self.pair_folders(Path(root) / "images" / folder, masks), split)


def class_numbers(pixels: NDArray[Any]) -> NDArray[np.int32]:
    """The object's number in a ``*_seg.png``, ``h w 3`` (RGB) to ``h w``; 0 is unlabelled.

    Source: https://github.com/CSAILVision/ADE20K, utils/utils_ade20k.py.
    """
    return (pixels[..., 0] // 10).astype(np.int32) * 256 + pixels[..., 1]


class ADE20KFull(SegmentationDataset):
    """ADE20K's full annotations (Zhou et al., "Semantic Understanding of Scenes through the ADE20K Dataset", IJCV
    2019): ``images/ADE/training/SCENE/…/*.jpg`` with ``*_seg.png`` beside them, ``validation`` likewise; 25574 train
    and 2000 val images.

    847 of its 3688 kinds of objects are classes, as in MaskFormer (arXiv 2107.06278); the others are ignored, like what
    is unlabelled. Parts, instances and JSON files are left alone. Images are read at their full size, whereas
    MaskFormer first scales the shorter side down to 512, in evaluation too.

    For use under its terms of use, after registration, from http://groups.csail.mit.edu/vision/datasets/ADE20K: the
    release ``ADE20K_2021_17_01``.

    Args:
        root: the folder ``ADE20K_2021_17_01``, which holds ``images/ADE``.
        split: ``train`` or ``val``.
        labels: False lists the images alone.
        num_classes: the most frequent ones: 847, or 700, 500 or 300 as in ProtoSeg's study of large vocabularies
            (arXiv 2203.15102).

    Raises:
        ProtosegError: another number; files that are missing or do not pair up.
    """

    label_space = ADE20K_FULL
    id_channel = staticmethod(class_numbers)
    splits = ("train", "val")
    source = (
        "ADE20K's full annotations (Zhou et al., IJCV 2019) are the release ADE20K_2021_17_01 of "
        "http://groups.csail.mit.edu/vision/datasets/ADE20K, which asks for registration, under its terms of use."
    )

    def __init__(self, root: str | Path, split: str = "train", labels: bool = True, num_classes: int = 847) -> None:
        self.check_split(split)
        self.label_space = self.space(num_classes=num_classes)
        self.id_table = ADE20K_FULL_IDS.copy()
        self.id_table[self.id_table >= num_classes] = WIDE_FILE_IGNORED
        folder = Path(root) / "images" / "ADE" / _FOLDERS[split]
        # The folder ADE_… beside an image holds its instances, half a million files in all.
        super().__init__(self.pair_trees(folder, ".jpg", folder if labels else None, "_seg.png", skip="ADE_"), split)

    @classmethod
    def space(cls, **options: Any) -> LabelSpace:
        num_classes = options.get("num_classes", ADE20K_FULL.num_classes)
        if num_classes not in NUM_CLASSES:
            raise ProtosegError(
                f"data.dataset.num_classes: expected one of {', '.join(map(str, NUM_CLASSES))}, got {num_classes}"
            )
        if num_classes == ADE20K_FULL.num_classes:
            return ADE20K_FULL
        name = f"{ADE20K_FULL.name}_{num_classes}"
        return LabelSpace(name, ADE20K_FULL.classes[:num_classes], ADE20K_FULL.colors[:num_classes])
