"""From the embeddings of a whole image to its label map: in pieces, against all cosines at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.functional.resize import upsample_logits
from protoseg.functional.similarity import similarities


class InferenceSetting(NamedTuple):
    """Sizes; the defaults are Cityscapes' and HRNet-W48's."""

    height: int = 1024
    width: int = 2048
    stride: int = 4
    channels: int = 720
    classes: int = 19
    prototypes: int = 10

    def describe(self) -> str:
        s = self
        return f"{s.height} x {s.width} at stride {s.stride}, C={s.classes}, K={s.prototypes}, D={s.channels}"


def inference_steps(setting: InferenceSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Both ways by name, on the same numbers, and the upsampling and choice of classes that they share."""
    s, generator = setting, torch.Generator().manual_seed(0)
    rows, columns = -(-s.height // s.stride), -(-s.width // s.stride)
    embeddings = F.normalize(torch.randn(rows * columns, s.channels, generator=generator), dim=1).to(device)
    prototypes = F.normalize(torch.randn(s.classes, s.prototypes, s.channels, generator=generator), dim=2).to(device)

    @torch.no_grad()
    def choose(scores: Tensor) -> Tensor:
        logits = scores.view(1, rows, columns, -1).permute(0, 3, 1, 2)
        return upsample_logits(logits, (s.height, s.width), s.stride).argmax(1)

    @torch.no_grad()
    def in_pieces() -> Tensor:
        return choose(similarities(embeddings, prototypes).scores)

    @torch.no_grad()
    def at_once() -> Tensor:
        return choose(torch.einsum("nd,ckd->nck", embeddings, prototypes).amax(2))

    scores = torch.rand(rows * columns, s.classes, device=device)
    return {"in pieces": in_pieces, "all cosines": at_once, "upsampling and argmax alone": lambda: choose(scores)}
