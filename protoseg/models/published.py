"""Published weights, by name: the kinds and their names are in ``published.yaml``, what is no table is here."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from protoseg.models.weights import State
from protoseg.types import yaml_beside

_BENCHMARKS = {19: "cityscapes", 150: "ade20k", 171: "coco_stuff"}  # ``data=`` of published networks, by their classes
_MIT = {(32, 2): "b0", (64, 2): "b1", (64, 6): "b2", (64, 18): "b3", (64, 27): "b4", (64, 40): "b5"}
"""MiT's variants by the width of the first stage and the blocks of the third."""
_EPSILON = 1e-5  # of BatchNorm


@dataclass(frozen=True)
class Kind:
    """A kind of files with published weights; its attributes are explained in ``published.yaml``."""

    name: str
    mark: str
    told: list[str]
    names: dict[str, str | None]
    cityscapes: tuple[str, ...] = ()
    encoder_only: bool = False

    def renamed(self, state: State) -> tuple[State, list[str]]:
        """The tensors in our names, and the names that are left over."""
        found: State = {}
        left: list[str] = []
        for name, tensor in MENDS.get(self.name, dict)(dict(state)).items():
            rule = next((rule for rule in self.names.items() if re.fullmatch(rule[0], name)), None)
            if rule is None:
                left.append(name)
            elif rule[1] is not None:
                found[re.sub(rule[0], rule[1], name)] = tensor
        return found, left

    def settings(self, state: State) -> list[str]:
        """From the tensors in our names, what ``train.py`` would be told to train such a network."""
        known = seen(state)
        told = [*self.told, *(self.cityscapes if known.get("data") == "cityscapes" else ())]
        return [setting.format_map(known) for setting in told if "{mit}" not in setting or "mit" in known]


def seen(state: State) -> dict[str, Any]:
    """What tensors in our names tell of their network; ``mit`` only of one with that encoder."""
    known: dict[str, Any] = {"hrnet": len(state.get("encoder.model.transition1.0.0.weight", range(48)))}
    known["smp"] = "segformer" if "decoder.decoder.fuse_stage.0.weight" in state else "upernet"
    if (finest := state.get("encoder.model.patch_embed1.proj.bias")) is not None:
        blocks = {name.split(".")[3] for name in state if name.startswith("encoder.model.block3.")}
        known["mit"] = _MIT.get((len(finest), len(blocks)), "b5")
    if (head := state.get("head.classifier.weight", state.get("head.memory.prototypes"))) is not None:
        known["data"] = _BENCHMARKS.get(len(head), "cityscapes")
        known["width"] = known["prototypes"] = head.shape[1]
    return known


def _coarsest_first(state: State, name: str) -> State:
    """The convolution ``name`` joins four maps finest first, ours coarsest first."""
    if name in state:
        state[name] = torch.cat(state[name].chunk(4, dim=1)[::-1], dim=1)
    return state


def _mit_of_mmseg(state: State) -> State:
    """Stages count from 1 here, queries lie apart from keys and values, and 1 x 1 convolutions are linear layers."""
    found: State = {}
    for name, tensor in state.items():
        name = re.sub(r"^((?:backbone\.)?layers\.)(\d)", lambda stage: f"{stage[1]}{int(stage[2]) + 1}", name)
        if ".attn.attn.in_proj_" in name:
            width = len(tensor) // 3
            found[name.replace("attn.attn.in_proj_", "attn.q.")] = tensor[:width]
            found[name.replace("attn.attn.in_proj_", "attn.kv.")] = tensor[width:]
        else:
            found[name] = tensor.flatten(1) if re.search(r"\.ffn\.layers\.[04]\.weight$", name) else tensor
    return found


def _protoseg(state: State) -> State:
    state["backbone.conv1.weight"] = state["backbone.conv1.weight"].flip(1)  # BGR to RGB
    state["cls_head.1.0.running_mean"] = state["cls_head.1.0.running_mean"] - state.pop("cls_head.0.bias")
    # The released projection has a bias and no BatchNorm: ours becomes one that adds the bias and scales by 1.
    bias = state.pop("proj_head.mlp2.0.bias")
    norm = {"weight": torch.ones_like(bias), "bias": bias, "running_mean": torch.zeros_like(bias)}
    norm |= {"running_var": torch.full_like(bias, 1 - _EPSILON), "num_batches_tracked": torch.tensor(0)}
    state |= {f"proj_head.mlp2.1.{name}": tensor for name, tensor in norm.items()}
    state["prototypes"] = F.normalize(state["prototypes"], dim=2)
    placed = torch.ones(state["prototypes"].shape[:2])
    return state | {"updates": placed.long(), "occupancy": torch.zeros_like(placed)}


MENDS: dict[str, Callable[[State], State]] = {
    "HRDA or MIC": lambda state: _coarsest_first(state, "decode_head.scale_attention.fuse_layer.conv.weight"),
    "ProtoSeg": _protoseg,
    "SegFormer (mmsegmentation)": lambda s: _mit_of_mmseg(_coarsest_first(s, "decode_head.fusion_conv.conv.weight")),
    "MiT, ImageNet (mmsegmentation)": _mit_of_mmseg,
}
"""By kind, what changes in its tensors beside their names."""

_TABLE = yaml_beside(__file__, "published.yaml")
KINDS = tuple(Kind(name, **entry) for name, entry in _TABLE.items())
