"""The values that travel between the rooms of the package: batches, model outputs, label spaces, user errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import yaml  # type: ignore[import-untyped]

from protoseg.text import visible

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -1
"""Label of pixels that count in no loss and no metric, in every tensor; what files hold is known in ``data`` alone."""

MAX_CLASSES = 65534  # more do not fit into the 16 bits of a label file, beside its two other values
MAX_NAME = 1000  # letters of the name of a class

Names = Sequence[str]
Size = tuple[int, int]  # height and width
StrPath = str | Path


class ProtosegError(ValueError):
    """Wrong input by the user: in one line what was expected, what was got, where, and what to do."""

    def __str__(self) -> str:
        return visible(super().__str__())


@contextmanager
def told(message: Callable[[Any], str | None], *kinds: type[Exception]) -> Iterator[None]:
    """Inside, errors of these kinds become a ProtosegError with ``message`` of it.

    A ProtosegError stays as it is, unless that is among the kinds, and so does an error of which the message is None.
    """
    try:
        yield
    except kinds as error:
        ours = isinstance(error, ProtosegError) and ProtosegError not in kinds
        if ours or (text := message(error)) is None:
            raise
        raise ProtosegError(text) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_choice(setting: str, value: object, choices: Collection[object]) -> None:
    """Raise ProtosegError unless the value of a setting is one of the choices."""
    if value not in choices:
        raise ProtosegError(f"{setting}: expected one of {', '.join(map(str, choices))}, got {value!r}")


def require(extra: str, *modules: str) -> None:
    """Raise ProtosegError where one of the optional packages is missing, which the ``extra`` of ours installs."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ProtosegError(f"expected {', '.join(missing)} to be installed, got none: pip install 'protoseg[{extra}]'")


def yaml_beside(module: str, name: str) -> Any:
    """What a YAML file of ours says that lies beside a module, whose ``__file__`` is given."""
    return yaml.safe_load(Path(module).with_name(name).read_bytes())


def first_line(error: Exception) -> str:
    """The first line of an error's message; of an error without one its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set, in train-id order; every pixel outside them carries ``IGNORE_INDEX``."""

    name: str  # e.g. ``"camvid"``
    classes: tuple[str, ...]  # names; the position is the train id
    colors: tuple[tuple[int, int, int], ...]  # RGB, 0 to 255
    things: tuple[str, ...] = ()  # names of the countable classes (car, person, …); the others are "stuff" (road, sky)
    # Of images that are not RGB, the channels that pictures show as red, green, blue; none: the first three.
    shown: tuple[int, ...] = field(default=(), compare=False)
    # Empty, or in a tree, whose groups are classes behind all others, each one's group, which is a higher id, or -1.
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.colors):
            got = f"{len(self.classes)} classes and {len(self.colors)} colours"
            raise ProtosegError(f"label space {self.name!r}: expected one colour per class, got {got}")
        if unknown := sorted(set(self.things) - set(self.classes)):
            raise ProtosegError(f"label space {self.name!r}: expected things of its classes, got {', '.join(unknown)}")
        tree, groups = self.parents, range(self.leaves, self.num_classes)
        fits = len(tree) == self.num_classes and all(p == -1 or (p > i and p in groups) for i, p in enumerate(tree))
        if tree and not fits:
            raise ProtosegError(f"label space {self.name!r}: expected the classes of its hierarchy, got others: {tree}")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def leaves(self) -> int:
        """The number of classes that are no groups of a tree, which stand before these."""
        return self.num_classes - len({*self.parents} - {-1})

    @property
    def ignored_color(self) -> tuple[int, int, int]:
        """Of ignored pixels in pictures: black, or where a class is black another grey."""
        return next(grey for value in (0, 255, *range(1, 255)) if (grey := (value,) * 3) not in self.colors)

    def ids(self, names: Iterable[str], where: str) -> list[int]:
        """Train ids of classes by name; ProtosegError, which begins with ``where``, for no class here, or no name."""
        names = [f"{names!r}, no list"] if isinstance(names, str) else [*names]
        unknown = sorted({str(name) for name in names if name not in self.classes})
        if unknown or not names:
            wanted = f"classes of the label space {self.name!r} ({', '.join(self.classes)})"
            got = ", ".join(unknown) or "none (an empty list)"
            raise ProtosegError(f"{where}: expected {wanted}, got {got}; correct the names")
        return [self.classes.index(name) for name in names]


class Rest(NamedTuple):
    """Pixels of which is known only that they are of one of the classes that their image does not annotate."""

    pixels: Tensor  # bool ``b h w``; their label is ``IGNORE_INDEX``
    classes: Tensor  # those classes of each image, bool ``b c``


class Batch(NamedTuple):
    """A collated batch. Images of different sizes are padded at the bottom and right to the largest."""

    image: Tensor  # uint8 RGB, ``b 3 h w``, not normalised (the model does that with its encoder's statistics)
    label: Tensor  # int64 train ids, ``b h w``, ``IGNORE_INDEX`` where unlabelled or padded
    size: Tensor  # int64, ``b 2``: height and width of each image before padding
    name: list[str]  # path of each image file, for messages and for naming outputs
    maps: list[Tensor] | None = None  # what a frozen encoder made of the images, which are not there then (``b 0``)
    rest: Rest | None = None  # of training images that do not annotate all classes; None: all of them do


class AdaptationBatch(NamedTuple):
    """What one step of domain adaptation sees: labelled source images and target images without labels."""

    source: Batch
    target: Batch  # every label is ``IGNORE_INDEX``: the files are not even opened in training


class Detail(NamedTuple):
    """Class logits of HRDA's high-resolution crop, before the fusion."""

    logits: Tensor  # ``b c h w`` on the grid of the model's stride
    box: tuple[int, int, int, int]  # top, left, height and width of the crop in pixels of the image


class Similarities(Protocol):
    """Cosines of ``n`` pixels to ``k`` prototypes of each of ``c`` classes, and differentiable readings of them."""

    num_classes: int
    num_prototypes: int

    @property
    def scores(self) -> Tensor:
        """Cosine to the nearest prototype of each class, ``n c``."""

    def own(self, label: Tensor) -> Tensor:
        """Cosines to the prototypes of each pixel's class, ``n k``, without gradient; class 0's for ignored pixels."""

    def at(self, target: Tensor) -> Tensor:
        """Cosine to the prototype of flat index ``class * k + j`` (int64 ``n``), ``n``; -1 gives that to the first."""

    def logsumexp(self, temperature: float) -> Tensor:
        """log of the sum over all prototypes of exp(cosine / temperature), ``n``."""


class SegOutput(NamedTuple):
    """What a ``Segmentor`` returns. The grid ``h w`` is the decoder's (usually a quarter of the image)."""

    logits: Tensor  # of the classes, ``b c h w``
    embeddings: Tensor  # ``b d h w``; unit length for prototype heads
    similarities: Similarities | None = None  # of each pixel, flattened, to each prototype; None without prototypes
    features: list[Tensor] | None = None  # the encoder's maps, finest first
    auxiliary: Tensor | None = None  # class logits of the auxiliary head (training only)
    detail: Detail | None = None  # of multi-resolution models (training only)
    align_corners: bool = False  # how logits go to pixels, see :func:`protoseg.functional.resize.upsample_logits`
