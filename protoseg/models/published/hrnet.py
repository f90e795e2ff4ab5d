"""HRNet's ImageNet weights, in timm's names too: ``hrnetv2_w48_imagenet_pretrained.pth`` and the like."""

from __future__ import annotations

from protoseg.models.published.kind import Kind, State


def hrnet_settings(state: State) -> list[str]:
    """Which HRNet it is, by the width of its finest branch."""
    width = len(state.get("encoder.model.transition1.0.0.weight", range(48)))
    return ["encoder=hrnet_w48", f"encoder.name=hrnet_w{width}"]


HRNET = Kind(
    "HRNet, ImageNet", "stage4.0.fuse_layers.0.1.0.weight", ((r"(.+)", r"encoder.model.\1"),), hrnet_settings,
    encoder_only=True,
)  # fmt: skip
