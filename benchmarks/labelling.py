"""A large image from pixels to its label map: how much memory it takes, in windows and strips as ``predict`` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.against import ENCODER, PYRAMID, WIDTH
from protoseg.evaluation.predictor import Predictor
from protoseg.models.decoders import FPNDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import ParametricHead


class LabellingSetting(NamedTuple):
    """Sizes in pixels."""

    height: int = 2048
    width: int = 2048
    classes: int = 19

    def describe(self) -> str:
        return f"lite0 + FPN, {self.height} x {self.width}, C={self.classes}"


def labelling_steps(setting: LabellingSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Ours, beside the scores that a network at the image's own size would give, kept once."""
    s = setting
    decoder = partial(FPNDecoder, pyramid_channels=PYRAMID, segmentation_channels=WIDTH)
    model = Segmentor(TimmEncoder(ENCODER, pretrained=False), decoder, ParametricHead, s.classes).eval()
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randint(0, 256, (1, 3, s.height, s.width), dtype=torch.uint8, device=device)
    size = torch.tensor([[s.height, s.width]])

    @torch.inference_mode()
    def ours() -> object:
        return Predictor().predict(model, image, size)

    return {"ours": ours, "all scores": lambda: torch.rand(1, s.classes, s.height, s.width, device=device).argmax(1)}
