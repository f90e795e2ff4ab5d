"""SegFormer (arXiv 2105.15203) of https://github.com/NVlabs/SegFormer, and of mmsegmentation 0.17 and later.

mmsegmentation's decoder has BatchNorm and ReLU after each embedding, which the paper's has not.
"""

from __future__ import annotations

import torch

from protoseg.models.published.kind import BENCHMARKS, Kind, State
from protoseg.models.published.mit import mit_settings, old_names

_MIT = (r"backbone\.(.+)", r"encoder.model.\1")
_DECODER = "decoder.decoder."
_NVLABS = (
    _MIT,
    *((rf"decode_head\.linear_c{4 - i}\.proj\.(.+)", rf"{_DECODER}mlp_stage.{i}.linear.\1") for i in range(4)),
    (r"decode_head\.linear_fuse\.conv\.(.+)", rf"{_DECODER}fuse_stage.0.\1"),
    (r"decode_head\.linear_fuse\.bn\.(.+)", rf"{_DECODER}fuse_stage.1.\1"),
    (r"decode_head\.linear_pred\.(.+)", r"head.classifier.\1"),
    (r"decode_head\.conv_seg\..+", None),  # of the base class; not used
)
_MMSEG = (
    _MIT,
    *((rf"decode_head\.convs\.{3 - i}\.conv\.(.+)", rf"{_DECODER}mlp_stage.{i}.0.\1") for i in range(4)),
    *((rf"decode_head\.convs\.{3 - i}\.bn\.(.+)", rf"{_DECODER}mlp_stage.{i}.1.\1") for i in range(4)),
    (r"decode_head\.fusion_conv\.conv\.(.+)", rf"{_DECODER}fuse_stage.0.\1"),
    (r"decode_head\.fusion_conv\.bn\.(.+)", rf"{_DECODER}fuse_stage.1.\1"),
    (r"decode_head\.conv_seg\.(.+)", r"head.classifier.\1"),
)


def _mend_mmseg(state: State) -> State:
    """NVlabs' names of the encoder; the decoder joins the four maps finest first, ours coarsest first."""
    name = "decode_head.fusion_conv.conv.weight"
    state[name] = torch.cat(state[name].chunk(4, dim=1)[::-1], dim=1)
    return old_names(state, "backbone.")


def _settings(state: State) -> list[str]:
    data = BENCHMARKS.get(len(state["head.classifier.weight"]), "cityscapes")
    width = len(state["decoder.decoder.fuse_stage.0.weight"])
    slide = ["inference=slide", "inference.crop_size=[1024,1024]", "inference.stride=[768,768]"]
    own = [f"data={data}", "decoder=segformer", f"decoder.width={width}", "head=linear"]
    return [*own, *(slide if data == "cityscapes" else []), *mit_settings(state)]


SEGFORMER = Kind("SegFormer (NVlabs)", "decode_head.linear_fuse.conv.weight", _NVLABS, _settings)
SEGFORMER_MMSEG = Kind(
    "SegFormer (mmsegmentation)", "decode_head.fusion_conv.conv.weight", _MMSEG,
    lambda state: [*_settings(state), "decoder.embedding_norm=true"], _mend_mmseg,
)  # fmt: skip
