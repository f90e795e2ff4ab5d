"""Plain images without masks, for prediction."""

from __future__ import annotations

from pathlib import Path

from protoseg.data.dataset import SegmentationDataset
from protoseg.data.pairing import IMAGE_SUFFIXES, list_images, other_formats
from protoseg.types import LabelSpace, ProtosegError


class ImageFolder(SegmentationDataset):
    """All images under ``root``, subfolders included, of any size; every label pixel reads as ignored.

    Args:
        root: the folder, or a single image.
        label_space: the classes of the model that will see the images.
        split: any name; kept so that the class is called as the other data sets are.

    Raises:
        ProtosegError: ``root`` is no folder and no image, or holds no image.
    """

    def __init__(self, root: str | Path, label_space: LabelSpace, split: str = "predict") -> None:
        place = Path(root)
        if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
            paths = [place]
        else:
            paths = list_images(place, recursive=True) if place.is_dir() else []
        if not paths:
            state = "no such file in it" if place.is_dir() else "not an image" if place.is_file() else "no such folder"
            raise ProtosegError(
                f"expected a folder with images ({', '.join(IMAGE_SUFFIXES)}), or one image, got {place.absolute()}: "
                f"{other_formats(place) or state}"
            )
        self.label_space = label_space
        super().__init__([(path, None) for path in paths], split)
