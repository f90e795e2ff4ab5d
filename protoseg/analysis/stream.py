"""Images one after the other, each with what a model makes of it: what every analysis here reads.

Collectors take one :class:`Scene` at a time and keep only what they count, so any number of images fits, and several
collectors share one pass of the model.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from protoseg.evaluation.pictures import rgb
from protoseg.evaluation.predictor import evaluating
from protoseg.functional.resize import downsample_label, image_size, upsample_logits
from protoseg.nn import PrototypeMemory
from protoseg.text import progress
from protoseg.types import IGNORE_INDEX, Batch, ProtosegError, SegOutput, Similarities

Loader = DataLoader[Batch]
_NO_PROTOTYPES = (
    "analysis: expected a model with prototypes, got one with a learned classifier; train with head=prototype, or ask "
    "for what needs none: protoseg analyse uncertainty"
)


class Scene(NamedTuple):
    """One image and the model's output for it. The grid ``h w`` is the output's."""

    number: int  # place in the stream
    name: str  # path of the image
    image: Tensor  # what pictures show of it: uint8 RGB, ``3 H W``
    label: Tensor  # int64 ``H W``, class ids or the ignored one
    output: SegOutput  # of a batch of one
    stride: int  # pixels per cell of the grid

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return image_size(self.label)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in cells."""
        return image_size(self.output.logits)

    @property
    def cell_label(self) -> Tensor:
        """True class at the centre pixel of each cell, as training reads it, int64 ``h*w``."""
        return downsample_label(self.label.unsqueeze(0), self.grid, self.stride).flatten()

    @property
    def cell_prediction(self) -> Tensor:
        """Predicted class of each cell, int64 ``h*w``."""
        return self.output.logits.argmax(1).flatten()

    @property
    def prediction(self) -> Tensor:
        """Predicted class of each pixel, int64 ``H W``."""
        return self.at_pixels(self.output.logits[0]).argmax(0)

    @property
    def labelled(self) -> Tensor:
        """Which cells have a true class, bool ``h*w``."""
        return self.cell_label != IGNORE_INDEX

    @property
    def cell_class(self) -> Tensor:
        """True class of each cell, or, where no cell has one, the predicted one, int64 ``h*w``."""
        return self.cell_label if self.labelled.any() else self.cell_prediction

    @property
    def cosines(self) -> Similarities:
        """Cosines of the cells to all prototypes; raises ProtosegError if the model has none."""
        if self.output.similarities is None:
            raise ProtosegError(_NO_PROTOTYPES)
        return self.output.similarities

    def at_pixels(self, cells: Tensor) -> Tensor:
        """A map on the grid, ``n h w``, at the image's pixels, ``n H W``, as logits are brought there."""
        return upsample_logits(cells.unsqueeze(0), self.size, self.stride, self.output.align_corners)[0]

    def centre(self, cell: int) -> tuple[int, int]:
        """Row and column of the pixel at the centre of a cell, by the cell's flat index."""
        row, column = divmod(cell, self.grid[1])
        half = self.stride // 2
        return min(row * self.stride + half, self.size[0] - 1), min(column * self.stride + half, self.size[1] - 1)


def images(loader: Loader, title: str) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """Number, name, image and label, as of :class:`Scene`, of each image of a loader; a progress bar has the title."""
    padded = (one for batch in loader for one in zip(batch.name, batch.image, batch.label, batch.size, strict=True))
    shown = progress(padded, title, len(cast(Any, loader.dataset)))
    for number, (name, image, label, (height, width)) in enumerate(shown):
        yield number, name, image[:, :height, :width], label[:height, :width]


def scenes(model: nn.Module, loader: Loader, title: str = "analysing") -> Iterator[Scene]:
    """Every image of a loader, e.g. a DataModule's ``eval_dataloader(split)``, with the output of a ``Segmentor``.

    Whole and at its own size, in eval mode, without gradient, where the parameters are, one image at a time: memory and
    results do not depend on the loader's batch size.
    """
    space = getattr(loader.dataset, "label_space", None)
    with evaluating(model):
        for number, name, image, label in images(loader, title):
            yield look(model, image, label, number, name, space.shown if space else ())


@torch.no_grad()
def look(
    model: nn.Module, image: Tensor, label: Tensor | None = None, number: int = 0, name: str = "", shown: Any = ()
) -> Scene:
    """One image, uint8 or float in 0 to 1, ``c H W``, with the output of a ``Segmentor`` in eval mode.

    Without a label, int64 ``H W``, all pixels count as ignored. ``shown`` are the channels that pictures show, if any.
    """
    network: Any = model
    image = image.to(next(chain(model.parameters(), model.buffers()), image).device)
    if label is None:
        label = torch.full(image.shape[1:], IGNORE_INDEX)
    return Scene(number, name, rgb(image, shown), label.to(image.device), network(image.unsqueeze(0)), network.stride)


@torch.no_grad()
def collect(stream: Iterable[Scene], *collectors: Any) -> None:
    """Show every scene to every collector by its ``update(scene)``: one pass of the model for all of them."""
    for scene in stream:
        for collector in collectors:
            collector.update(scene)


def prototype_memory(model: nn.Module) -> PrototypeMemory:
    """The prototypes of a model; raises ProtosegError if it has none."""
    memory: PrototypeMemory | None = cast(Any, model).head.memory
    if memory is None:
        raise ProtosegError(_NO_PROTOTYPES)
    return memory
