"""Mix Transformer (SegFormer, arXiv 2105.15203): ImageNet weights in NVlabs' names and mmsegmentation's."""

from __future__ import annotations

import re

from protoseg.models.published.kind import Kind, State

_VARIANTS = {(32, 2): "b0", (64, 2): "b1", (64, 6): "b2", (64, 18): "b3", (64, 27): "b4", (64, 40): "b5"}
"""By the width of the first stage and the blocks of the third."""

_OLD = (
    (r"layers\.(\d)\.0\.projection\.(.+)", r"patch_embed{}.proj.\2"),
    (r"layers\.(\d)\.0\.norm\.(.+)", r"patch_embed{}.norm.\2"),
    (r"layers\.(\d)\.1\.(\d+)\.attn\.attn\.out_proj\.(.+)", r"block{}.\2.attn.proj.\3"),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.0\.(.+)", r"block{}.\2.mlp.fc1.\3"),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.1\.(.+)", r"block{}.\2.mlp.dwconv.dwconv.\3"),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.4\.(.+)", r"block{}.\2.mlp.fc2.\3"),
    (r"layers\.(\d)\.1\.(\d+)\.(.+)", r"block{}.\2.\3"),
    (r"layers\.(\d)\.2\.(.+)", r"norm{}.\2"),
)


def old_names(state: State, prefix: str = "") -> State:
    """mmsegmentation's MiT in NVlabs' names: stages count from 1, and queries lie apart from keys and values."""
    found: State = {}
    for name, tensor in state.items():
        inner = name.removeprefix(prefix)
        rule = next((rule for rule in _OLD if name.startswith(prefix) and re.fullmatch(rule[0], inner)), None)
        if rule is not None:
            stage = int(inner.split(".")[1]) + 1
            name = prefix + re.sub(rule[0], rule[1].format(stage), inner)
        if ".attn.attn.in_proj_" in name:
            width = len(tensor) // 3
            found[name.replace("attn.in_proj_", "q.")] = tensor[:width]
            found[name.replace("attn.in_proj_", "kv.")] = tensor[width:]
        else:  # linear layers are 1 x 1 convolutions there
            found[name] = tensor.flatten(1) if re.search(r"\.mlp\.fc[12]\.weight$", name) else tensor
    return found


def mit_settings(state: State) -> list[str]:
    """Which MiT it is, by its shapes in our names."""
    width = state.get("encoder.model.patch_embed1.proj.bias", ())
    blocks = len({name.split(".")[3] for name in state if name.startswith("encoder.model.block3.")})
    return [f"encoder=mit_{_VARIANTS.get((len(width), blocks), 'b5')}"]


_RULES = ((r"head\..+", None), (r"(.+)", r"encoder.model.\1"))
MIT = Kind("MiT, ImageNet (NVlabs)", "patch_embed1.proj.weight", _RULES, mit_settings, encoder_only=True)
MIT_MMSEG = Kind(
    "MiT, ImageNet (mmsegmentation)", "layers.0.0.projection.weight", _RULES, mit_settings, old_names, True
)
