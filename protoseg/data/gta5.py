"""GTA5 in its official layout, read without any preprocessing."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CITYSCAPES, GTA5_IDS

# Known to be invalid; others leave them out too.
_INVALID = ("15188", "17705")


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
