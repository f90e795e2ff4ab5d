"""The two data sets of driving at night and in bad weather, in their official layouts."""

from collections.abc import Sequence
from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from protoseg.types import ProtosegError

CONDITIONS = ("fog", "night", "rain", "snow")
TIMES = ("night", "twilight", "day")
_IMAGE_END, _MASK_END = "_rgb_anon.png", "_gt_labelTrainIds.png"


class ACDC(SegmentationDataset):
    """ACDC (Sakaridis, Dai, Van Gool, ICCV 2021): ``rgb_anon/CONDITION/SPLIT/SEQUENCE/*_rgb_anon.png`` with the masks
    ``gt/CONDITION/SPLIT/SEQUENCE/*_gt_labelTrainIds.png``; 1600 train, 406 val and 2000 test images, 1920 x 1080.

    https://acdc.vision.ee.ethz.ch/download, after registration, for non-commercial use.

    Args:
        root: the folder that holds ``rgb_anon`` and ``gt``.
        split: ``train``, ``val`` or ``test`` (whose masks are not public: every pixel reads as ignored).
        conditions: those to keep out of ``fog``, ``night``, ``rain`` and ``snow``; None keeps all.
        labels: False lists the images alone.

    Raises:
        ProtosegError: an unknown condition, or files that are missing or do not pair up.
    """

    label_space = CITYSCAPES
    id_table = CITYSCAPES_TRAIN_IDS
    source = (
        "ACDC (Sakaridis et al., ICCV 2021; rgb_anon_trainvaltest.zip and gt_trainval.zip) is at "
        "https://acdc.vision.ee.ethz.ch/download, after registration, for non-commercial use."
    )

    def __init__(
        self, root: str | Path, split: str = "train", conditions: Sequence[str] | None = None, labels: bool = True
    ) -> None:
        self.check_split(split)
        wanted = CONDITIONS if conditions is None else (conditions,) if isinstance(conditions, str) else conditions
        if not wanted or not set(wanted) <= set(CONDITIONS):
            raise ProtosegError(
                f"ACDC: expected conditions out of {', '.join(CONDITIONS)}, got {', '.join(wanted) or 'none'}: correct "
                "data.dataset.conditions (null keeps all)"
            )
        samples = []
        for condition in wanted:
            masks = Path(root) / "gt" / condition / split if labels and split != "test" else None
            samples += self.pair_trees(Path(root) / "rgb_anon" / condition / split, _IMAGE_END, masks, _MASK_END)
        super().__init__(samples, split)


class DarkZurich(SegmentationDataset):
    """Dark Zurich (Sakaridis, Dai, Van Gool, ICCV 2019): ``rgb_anon/SPLIT/TIME/SEQUENCE/*_rgb_anon.png``, 1920 x 1080.

    Only the 50 val images, all by night, have public masks, ``gt/val/night/SEQUENCE/*_gt_labelTrainIds.png``; train
    and test read as ignored. Train has 2416 images by night, 2920 at twilight, 3041 by day.
    https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/, for non-commercial use.

    Args:
        root: the folder that holds ``rgb_anon`` and ``gt``.
        split: ``train``, ``val`` or ``test``.
        time: ``night``, or ``twilight`` or ``day`` (train only).
        labels: False lists the images alone.

    Raises:
        ProtosegError: an unknown time, or files that are missing or do not pair up.
    """

    label_space = CITYSCAPES
    id_table = CITYSCAPES_TRAIN_IDS
    source = (
        "Dark Zurich (Sakaridis et al., ICCV 2019; Dark_Zurich_train_anon.zip and Dark_Zurich_val_anon.zip) is at "
        "https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/, for non-commercial use."
    )

    def __init__(self, root: str | Path, split: str = "train", time: str = "night", labels: bool = True) -> None:
        self.check_split(split)
        if time not in TIMES:
            raise ProtosegError(f"DarkZurich: expected a time out of {', '.join(TIMES)}, got {time!r}")
        masks = Path(root) / "gt" / split / time if labels and split == "val" else None
        images = Path(root) / "rgb_anon" / split / time
        super().__init__(self.pair_trees(images, _IMAGE_END, masks, _MASK_END), split)
