"""The built-in data set: rendered street scenes that ship inside the package (see ``streets/README.md``)."""

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CAMVID, CAMVID_IDS
from protoseg.types import ProtosegError

STYLES = ("day", "dusk")


class Streets(SegmentationDataset):
    """440 rendered street scenes, 320 x 240, with CamVid's 11 classes; a day and a dusk half with own splits.

    Made for this package and shipped inside it, CC0: no download, nothing to cite.

    Args:
        root: folder with ``day`` and ``dusk``; None for the one inside the package.
        style: ``day`` (200 train, 60 val) or ``dusk`` (120 train, 60 val).
        split: ``train`` or ``val``.
        labels: False lists the images alone.

    Raises:
        ProtosegError: unknown style or split, or files that are missing or do not pair up.
    """

    label_space = CAMVID
    id_table = CAMVID_IDS
    splits = ("train", "val")
    source = "Streets (CC0) ships inside the package: install it again if its files are gone."

    def __init__(
        self, root: str | Path | None = None, style: str = "day", split: str = "train", labels: bool = True
    ) -> None:
        self.check_split(split)
        if style not in STYLES:
            raise ProtosegError(f"Streets: expected a style out of {', '.join(STYLES)}, got {style!r}")
        folder = (Path(__file__).parent / "streets" if root is None else Path(root)) / style / split
        super().__init__(self.pair_folders(folder / "images", folder / "labels" if labels else None), split)
