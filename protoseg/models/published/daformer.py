"""DAFormer (Hoyer et al., CVPR 2022, arXiv 2111.14887), https://github.com/lhoyer/DAFormer.

The released code has the student under ``model.``, the teacher under ``ema_model.``; its scores are the student's.
"""

from __future__ import annotations

from protoseg.models.published.kind import Kind, State
from protoseg.models.published.mit import mit_settings


def head_rules(prefix: str) -> tuple[tuple[str, str], ...]:
    """Of encoder, decoder and classifier, whose names begin with ``prefix`` (a pattern)."""
    aspp = rf"{prefix}fuse_layer\.aspp_modules\."
    return (
        (r"backbone\.(.+)", r"encoder.model.\1"),
        (rf"{prefix}embed_layers\.(\d)\.proj\.(.+)", r"decoder.embeddings.\1.\2"),
        (rf"{aspp}0\.conv\.(.+)", r"decoder.fusion.branches.0.0.\1"),
        (rf"{aspp}0\.bn\.(.+)", r"decoder.fusion.branches.0.1.\1"),
        (rf"{aspp}(\d)\.depthwise_conv\.conv\.(.+)", r"decoder.fusion.branches.\1.0.0.\2"),
        (rf"{aspp}(\d)\.depthwise_conv\.bn\.(.+)", r"decoder.fusion.branches.\1.0.1.\2"),
        (rf"{aspp}(\d)\.pointwise_conv\.conv\.(.+)", r"decoder.fusion.branches.\1.1.0.\2"),
        (rf"{aspp}(\d)\.pointwise_conv\.bn\.(.+)", r"decoder.fusion.branches.\1.1.1.\2"),
        (rf"{prefix}fuse_layer\.bottleneck\.conv\.(.+)", r"decoder.fusion.bottleneck.0.\1"),
        (rf"{prefix}fuse_layer\.bottleneck\.bn\.(.+)", r"decoder.fusion.bottleneck.1.\1"),
        (rf"{prefix}conv_seg\.(.+)", r"head.classifier.\1"),
    )


def _settings(state: State) -> list[str]:
    return ["experiment=daformer", "data=gta5_to_cityscapes", *mit_settings(state)]


DAFORMER = Kind("DAFormer", "decode_head.fuse_layer.bottleneck.conv.weight", head_rules(r"decode_head\."), _settings)
