"""HRDA (arXiv 2204.13132) and MIC (arXiv 2212.01322), whose network is the same, by https://github.com/lhoyer.

Student and teacher as of DAFormer. The files do not say the crop sizes: those of the papers' settings are taken.
"""

import torch

from protoseg.models.published.daformer import head_rules
from protoseg.models.published.kind import Kind, State
from protoseg.models.published.mit import mit_settings

_ATTENTION = "decode_head.scale_attention."
_RULES = (
    *head_rules(r"decode_head\.head\."),
    *((rf"{_ATTENTION}embed_layers\.{i}\.proj\.(.+)", rf"attention.decoder.decoder.mlp_stage.{3 - i}.linear.\1")
      for i in range(4)),
    (rf"{_ATTENTION}fuse_layer\.conv\.(.+)", r"attention.decoder.decoder.fuse_stage.0.\1"),
    (rf"{_ATTENTION}fuse_layer\.bn\.(.+)", r"attention.decoder.decoder.fuse_stage.1.\1"),
    (rf"{_ATTENTION}conv_seg\.(.+)", r"attention.classifier.\1"),
)  # fmt: skip


def _coarsest_first(state: State) -> State:
    """The attention joins the four maps finest first, ours coarsest first."""
    name = f"{_ATTENTION}fuse_layer.conv.weight"
    if name in state:
        state[name] = torch.cat(state[name].chunk(4, dim=1)[::-1], dim=1)
    return state


def _settings(state: State) -> list[str]:
    return ["experiment=hrda", "data=gta5_to_cityscapes", *mit_settings(state)]


HRDA = Kind("HRDA or MIC", "decode_head.head.fuse_layer.bottleneck.conv.weight", _RULES, _settings, _coarsest_first)
