"""The base class of the data sets: a list of image and mask files that read as RGB and train ids."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from unicodedata import normalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from protoseg.data.channels import ImageReader
from protoseg.data.decoding import orientation
from protoseg.data.files import Channel, Color, read_label
from protoseg.data.label_spaces import Ids, file_ignored, ignored_in, rest_in
from protoseg.data.pairing import FilePair, read_lines, stem_in
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError

if TYPE_CHECKING:
    from protoseg.data.class_file import MaskReading
    from protoseg.data.transforms import TrainTransform


class Sample(NamedTuple):
    """One item of a data set: image uint8 RGB ``3 h w`` (or see ``ImageReader``), label int64 ``h w``, image's path."""

    image: Tensor
    label: Tensor
    name: str


def to_sample(image: NDArray[Any], label: Ids, name: str, partial: bool = False) -> Sample:
    """Arrays ``h w 3`` and ``h w`` as tensors that share no memory with them, ignored pixels ``IGNORE_INDEX``.

    Of a ``partial`` data set, pixels of classes that it does not annotate too.
    """
    ids = torch.from_numpy(label.astype(np.int64))
    ids[ids == ignored_in(label)] = IGNORE_INDEX
    if partial:
        ids[ids == rest_in(label)] = IGNORE_INDEX
    return Sample(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), ids, name)


class SegmentationDataset(Dataset[Sample]):
    """Images with label masks. A new data set is a subclass that sets the class attributes and lists its files.

    Its constructor takes ``split``, usually ``root``, and ``labels``, to be a target whose masks need not be there.
    """

    label_space: LabelSpace  # a class attribute, so that it is known before any file is there
    id_table: Ids  # id in the mask file -> train id (``label_spaces.id_table``); uint16 of more than 255 classes
    id_channel: Channel | None = None  # where the ids are in masks of several channels; None: grey, or a palette
    colors: Mapping[Color, int] = MappingProxyType({})  # label of each, in masks that may hold colours
    mask_reading: "MaskReading | None" = None  # how the masks are read, where that depends on them
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    source: str = ""  # where it comes from and under which terms, for the message when it is absent
    turn: bool = True  # images as EXIF says; else they are read as they are stored
    reader: ImageReader = ImageReader()  # of images
    transform: "TrainTransform | None" = None  # how training augments its images; a DataModule sets it
    parts: Sequence["SegmentationDataset"] = ()  # the data sets that it is put together from
    weights: NDArray[np.float64] | None = None  # how often training draws each, relative to the others; None: all alike
    rest: Sequence[int] | None = None  # train ids that pixels of ``rest_in`` may be of; None: all classes are annotated
    notes: Sequence[str] = ()  # about how the files were found, told by ``check`` and before a training
    names_in: Path | None = None  # the folder that all images lay in when ``names`` were asked for first
    lists: Sequence[Path] = ()  # files that say which images are in the split

    def __init__(self, samples: Sequence[FilePair], split: str) -> None:
        self.samples = list(samples)  # image and mask (None: no mask, every pixel reads as ignored)
        self.split = split

    @classmethod
    def space(cls, **options: Any) -> LabelSpace | None:
        """The classes of a data set that is made with these arguments, known before any image is looked at.

        None where it has none of its own. Raises ProtosegError: arguments that name no classes.
        """
        return getattr(cls, "label_space", None)

    @property
    def partial(self) -> bool:
        """Whether it, or one of its parts, does not annotate all classes."""
        return any(part.rest is not None for part in self.parts or [self])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.read(index)
        return to_sample(image, label, str(self.samples[index][0]), self.partial)

    def read(self, index: int) -> tuple[NDArray[Any], Ids]:
        """Image ``h w c`` (see ``ImageReader``) and label ``h w`` (train ids; the largest of its dtype where ignored).

        Raises ProtosegError: a file is bad or the two differ in size; the message names the file.
        """
        image_path, mask_path = self.samples[index]
        image = self.reader.read(image_path, self.turn)
        if mask_path is None:
            ignored = file_ignored(self.label_space.num_classes)
            return image, np.full(image.shape[:2], ignored, dtype=np.min_scalar_type(ignored))
        label = self.read_label(index)
        if image.shape[:2] != label.shape:
            (h, w), (mask_h, mask_w) = image.shape[:2], label.shape
            remedy = "export the mask again for this image, or this image at the size that the mask was drawn on"
            if orientation(image_path) >= 5 and (mask_h, mask_w) == (w, h):
                stored, other = ("turned as its EXIF says", "ignore") if self.turn else ("as it is stored", "apply")
                remedy = f"the image is read {stored} and the mask was drawn otherwise: set data.exif={other}"
            got = f"{w} x {h} in {image_path} and {mask_w} x {mask_h} in {mask_path}"
            raise ProtosegError(f"expected image and mask of one size, got {got}: {remedy}")
        return image, label

    def locate(self, index: int) -> tuple["SegmentationDataset", int]:
        """The data set that holds a sample, and the sample's number there: of one that has ``parts``, of a part."""
        return self, index

    def read_label(self, index: int) -> Ids:
        """The label alone, ``h w`` train ids; raises as ``read`` does."""
        image_path, mask_path = self.samples[index]
        if mask_path is None:
            raise ProtosegError(f"expected images with masks, got {image_path}, which has none")
        if self.mask_reading is not None:
            return self.mask_reading.label(mask_path, self.id_table, self.colors)
        return read_label(mask_path, self.id_table, self.id_channel)

    @property
    def names(self) -> list[str]:
        """Each image's path without suffix, in the folder that all of them lay in before :meth:`keep`."""
        self.names_in = self.names_in or Path(os.path.commonpath([image.parent for image, _ in self.samples]))
        return [stem_in(self.names_in, image) for image, _ in self.samples]

    def keep(self, given: str | Sequence[str], listed: bool) -> None:
        """Forget all images but those of these ``names``, or, not ``listed``, those.

        ``given`` may be a text file with one a line, where those that begin with ``#`` are comments, unless an image is
        called so. Raises ProtosegError: no name, those of all images, or a name that no image has.
        """
        lines, known = read_lines(Path(given)) if isinstance(given, str) else map(str, given), self.names
        said = {normalize("NFC", line.strip()) for line in lines} - {""}
        names = {name for name in said if name[0] != "#" or name in known}
        missing = sorted(names.difference(known))
        if missing or not 0 < len(names) < len(known):
            lacking = f", of which {len(missing)} are not there ({', '.join(missing[:5])})" if missing else ""
            text = f"train_list: expected names of some of {len(known)} images, such as {known[0]}, got {len(names)}"
            raise ProtosegError(f"{text}{lacking}: correct it or data.root, or draw a list with protoseg data draw")
        self.samples = [sample for sample, name in zip(self.samples, known, strict=True) if (name in names) == listed]

    def drop_labels(self) -> None:
        """Forget the masks: from now on every pixel reads as ignored, and no mask file is opened."""
        self.samples = [(image, None) for image, _ in self.samples]

    def map_classes(self, label_space: LabelSpace, table: NDArray[np.uint8]) -> None:
        """Read labels as the classes of ``label_space`` from now on, by ``label_spaces.mapping_table``."""
        self.label_space, self.id_table = label_space, table[self.id_table]
        self.colors = {color: int(table[label]) for color, label in self.colors.items()}

    @classmethod
    def check_split(cls, split: str) -> None:
        """Raise ProtosegError unless ``split`` is one of ``splits``."""
        if split not in cls.splits:
            raise ProtosegError(f"{cls.__name__}: expected a split out of {', '.join(cls.splits)}, got {split!r}")

    def check_folder(self, folder: Path, read: str = "") -> None:
        """Raise ProtosegError, with what is ``read``, the public source and the value to set, unless it exists."""
        if folder.is_dir():
            return
        name = getattr(self, "name", type(self).__name__)
        raise ProtosegError(
            f"{name}: expected the folder {folder.absolute()}, which does not exist. {read}{self.source} If it is "
            "elsewhere, set data.root=FOLDER (domain adaptation: data.source.root and data.target.root; evaluate.py: "
            "root=FOLDER), or the environment variable PROTOSEG_DATA to the folder that holds all data sets"
        )
