"""A network of another library, or of one's own: with a head of this package, and as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn

import protoseg
from protoseg.models.own import NetworkEncoder
from protoseg.training.base import SegmentationModule

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def with_our_head(classes: Sequence[str], *overrides: str) -> SegmentationModule:
    """A U-Net gives 16 channels for every pixel, prototypes their classes: to train in a loop or by a Trainer."""
    made_of = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 16}
    network = NetworkEncoder(smp.Unet(**made_of), channels=16, stride=1, **IMAGENET)
    return protoseg.build(classes, *overrides, network=network, arguments=made_of, head="prototype")


def as_it_is(classes: Sequence[str]) -> protoseg.Model:
    """A U-Net that classifies itself: to predict with, to evaluate, to save and to load."""
    made_of = {"encoder_name": "resnet18", "encoder_weights": None, "classes": len(classes)}
    return protoseg.Model.from_network(smp.Unet(**made_of), classes, made_of, **IMAGENET)


class SegFormer(nn.Module):
    """Hugging Face's SegFormer, made of plain values: so the YAML and a checkpoint can make it. Its map has stride 4.

    Args:
        channels: of the map that it gives: those of its classifier.
        config: as of ``transformers.SegformerConfig``; without any it is MiT-B0.
    """

    def __init__(self, channels: int = 64, **config: Any) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        self.network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=channels, **config))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``b 3 h w`` to ``b channels h/4 w/4``."""
        return self.network(image).logits
