"""The embeddings of labelled pixels, as a network that is trained no further sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from protoseg.data import SegmentationDataset
from protoseg.functional.resize import downsample_label
from protoseg.models.segmentor import Segmentor
from protoseg.types import IGNORE_INDEX

MAX_CELLS = 200_000
"""Cells of the grid kept of each class that is looked for, and of all others together: bounds the memory."""

OTHER = -1


class Cells(NamedTuple):
    """Labelled cells of the grid: unit embeddings ``n d``, and labels int64 ``n``, ``OTHER`` for other classes."""

    embeddings: Tensor
    label: Tensor

    def of(self, label: int) -> tuple[Tensor, Tensor]:
        """Embeddings of the cells of one class, and of all others."""
        return self.embeddings[self.label == label], self.embeddings[self.label != label]


@torch.no_grad()
def labelled_cells(
    model: Segmentor,
    dataset: SegmentationDataset,
    classes: Sequence[int],
    device: torch.device | str = "cpu",
    seed: int = 0,
    title: str = "",
) -> Cells:
    """The cells of all images whose centre pixel is labelled, on the CPU; of large sets a part, drawn by ``seed``.

    Args:
        model: in eval mode; moved to ``device``. Images are seen whole, at their own size.
        dataset: images with masks.
        classes: train ids that are looked for; other labels become ``OTHER``.
        title: of the progress bar; none without it.
    """
    model.to(device)
    generator = torch.Generator().manual_seed(seed)
    share = max(1, MAX_CELLS // len(dataset))
    embeddings, labels = [], []
    for index in track(range(len(dataset)), title, disable=not title):
        image, label, _ = dataset[index]
        output = model(image[None].to(device))
        grid = downsample_label(label[None], (output.logits.shape[2], output.logits.shape[3]), model.stride).flatten()
        sought = torch.isin(grid, torch.tensor(classes))
        known = torch.where(sought, grid, OTHER)
        chosen = torch.cat([_drawn(known == i, share, generator) for i in classes]
            + [_drawn(~sought & (grid != IGNORE_INDEX), share, generator)])  # fmt: skip
        embeddings.append(output.embeddings[0].flatten(1).T[chosen.to(device)].cpu())
        labels.append(known[chosen])
    return Cells(torch.cat(embeddings), torch.cat(labels))


def _drawn(wanted: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of at most ``count`` of the wanted cells."""
    found = wanted.nonzero().flatten()
    return found if len(found) <= count else found[torch.randperm(len(found), generator=generator)[:count]]
