"""Whole models of segmentation-models-pytorch with the decoders that are the same here: Segformer and UPerNet.

Encoders other than MiT are named with ``encoder=``. The library's last upsampling has ``align_corners``.
"""

from __future__ import annotations

from protoseg.models.published.kind import BENCHMARKS, Kind, State
from protoseg.models.published.mit import mit_settings

_RULES = (
    (r"encoder\.(.+)", r"encoder.model.\1"),
    (r"decoder\.(.+)", r"decoder.decoder.\1"),
    (r"segmentation_head\.0\.(.+)", r"head.classifier.\1"),
)


def _settings(state: State) -> list[str]:
    classes, width = state["head.classifier.weight"].shape[:2]
    decoder = "segformer" if "decoder.decoder.fuse_stage.0.weight" in state else "upernet"
    own = [f"data={BENCHMARKS.get(classes, 'cityscapes')}", f"decoder={decoder}", f"decoder.width={width}"]
    own += ["head=linear", "segmentor.align_corners=true"]
    return own + (mit_settings(state) if "encoder.model.patch_embed1.proj.bias" in state else [])


SMP = Kind("segmentation-models-pytorch", "segmentation_head.0.weight", _RULES, _settings)
