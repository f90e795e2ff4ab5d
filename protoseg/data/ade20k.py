"""ADE20K's scene parsing benchmark in its official layout, read without any preprocessing."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import ADE20K_150, ADE20K_IDS

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
