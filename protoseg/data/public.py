"""The data sets that have a class of their own: their official layouts, read without any preprocessing.

The layouts are in ``layouts.yaml``, under the names of the classes, with what each is and where it comes from. The
others are described where they are configured, in ``conf/data``.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from protoseg.data.label_spaces import ADE20K_FULL, WIDE_FILE_IGNORED
from protoseg.data.layout import LayoutDataset, described_classes
from protoseg.types import LabelSpace, Names, StrPath, check_choice, yaml_beside

LAYOUTS: dict[str, dict[str, Any]] = yaml_beside(__file__, "layouts.yaml")
NUM_CLASSES = (847, 700, 500, 300)


class PublicDataset(LayoutDataset):
    """A subclass is the data set of its name in ``layouts.yaml``: a ``LayoutDataset`` of these settings.

    Its ``root`` is the folder of the data, as it is unpacked; ``chosen`` are the layout's choices, and other settings.
    """

    layout: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        if cls.__name__ in LAYOUTS:  # else a subclass of one of these
            cls.layout = {"name": cls.__name__, **LAYOUTS[cls.__name__]}
            cls.label_space, cls.id_table, _ = described_classes(cls.layout["classes"], cls.layout.get("ids", "id"))
            cls.splits, cls.source = tuple(cls.layout["splits"]), cls.layout["source"]
            cls.__doc__ = f"{cls.__doc__}\n\n{cls.source}"

    def __init__(
        self, root: StrPath, split: str = "train", sequences: Names | None = None, labels: bool = True, **chosen: Any
    ) -> None:
        super().__init__(root, split, labels, sequences=sequences, **{**self.layout, **chosen})


class ACDC(PublicDataset):
    """ACDC, the 19 classes of Cityscapes; ``conditions``: of ``fog``, ``night``, ``rain``, ``snow``; None: all."""


class ADE20K(PublicDataset):
    """ADE20K's scene parsing benchmark, 150 classes."""


class CamVid(PublicDataset):
    """CamVid, 11 classes. ``sequences``: ``0001TP`` was filmed at dusk, ``0006R0``, ``0016E5``, ``Seq05VD`` by day."""


class Cityscapes(PublicDataset):
    """Cityscapes, whose 34 ids are read as its 19 classes."""


class COCOStuff(PublicDataset):
    """COCO-Stuff 164k, 171 classes."""


class DarkZurich(PublicDataset):
    """Dark Zurich, the 19 classes of Cityscapes; ``time``: ``night``, or ``twilight`` or ``day`` (train only)."""


class GTA5(PublicDataset):
    """GTA5, the 19 classes of Cityscapes."""


class Synthia(PublicDataset):
    """SYNTHIA-RAND-CITYSCAPES: 16 of Cityscapes' 19 classes (``label_spaces.SYNTHIA_16``)."""


class Streets(PublicDataset):
    """440 rendered street scenes, CC0, inside the package, with CamVid's 11 classes.

    ``style`` is ``day`` (200 train, 60 val) or ``dusk`` (120 train, 60 val).
    """

    def __init__(
        self, root: StrPath | None = None, style: str = "day", split: str = "train", labels: bool = True
    ) -> None:
        super().__init__(Path(__file__).parent / "streets" if root is None else root, split, labels=labels, style=style)


class ADE20KFull(PublicDataset):
    """ADE20K's full annotations: 847 classes, or the most frequent 700, 500 or 300 (``num_classes``) as in ProtoSeg's
    study of large vocabularies (arXiv 2203.15102). Images are read at their full size, whereas MaskFormer
    (arXiv 2107.06278) first scales the shorter side down to 512, in evaluation too.
    """

    @staticmethod
    def id_channel(pixels: NDArray[Any]) -> NDArray[np.int32]:
        """The object's number in a ``*_seg.png`` of ADE20K, ``h w 3`` (RGB) to ``h w``; 0 is unlabelled.

        Source: https://github.com/CSAILVision/ADE20K, utils/utils_ade20k.py.
        """
        return (pixels[..., 0] // 10).astype(np.int32) * 256 + pixels[..., 1]

    def __init__(self, root: StrPath, split: str = "train", labels: bool = True, num_classes: int = 847) -> None:
        super().__init__(root, split, labels=labels)
        self.label_space = self.space(num_classes=num_classes)
        self.id_table[self.id_table >= num_classes] = WIDE_FILE_IGNORED

    @classmethod
    def space(cls, **options: Any) -> LabelSpace:
        num_classes = options.get("num_classes", ADE20K_FULL.num_classes)
        check_choice("data.dataset.num_classes", num_classes, NUM_CLASSES)
        if num_classes == ADE20K_FULL.num_classes:
            return ADE20K_FULL
        name = f"{ADE20K_FULL.name}_{num_classes}"
        return LabelSpace(name, ADE20K_FULL.classes[:num_classes], ADE20K_FULL.colors[:num_classes])
