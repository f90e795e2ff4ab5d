"""A model small enough to be checked by hand, and images for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from protoseg.data.dataset import Sample
from protoseg.data.loading import collate
from protoseg.nn import ParametricHead, PrototypeHead
from protoseg.types import LabelSpace, SegOutput

SPACE = LabelSpace("toy", ("road", "sky", "red car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SIZES = [(24, 40), (17, 33), (24, 40), (30, 20), (17, 33)]
PROTOTYPES = 2


class Toy(nn.Module):
    """Colours averaged over 4 x 4 pixels, and a head that has learned nothing."""

    stride = 4

    def __init__(self, prototypes: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.colors = nn.Conv2d(3, 6, 1)
        self.head = PrototypeHead(6, 3, PROTOTYPES, embedding_dim=5) if prototypes else ParametricHead(6, 3)

    def forward(self, image: Tensor) -> SegOutput:
        pooled = F.avg_pool2d(image.float() / 255, self.stride, ceil_mode=True, count_include_pad=False)
        output: SegOutput = self.head(20 * self.colors(pooled))
        return output


class Images(Dataset[Any]):
    """Noise in blocks; the top rows are unlabelled, or all rows."""

    def __init__(self, count: int = 5, void: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.items = []
        for i in range(count):
            h, w = SIZES[i % len(SIZES)]
            blocks = torch.randint(256, (1, 3, 8, 8), generator=generator).float()
            image = F.interpolate(blocks, (h, w))[0].byte()
            label = torch.randint(3, (h, w), generator=generator)
            label[: h if void else 5] = -1
            self.items.append(Sample(image, label, f"/photos/{i}.png"))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def loader(batch_size: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(Images(**options), batch_size=batch_size, collate_fn=collate)
