"""ProtoSeg (Zhou et al., CVPR 2022, arXiv 2203.15102), https://github.com/tfzhou/ProtoSeg: HRNet with prototypes.

Four options make ours the released network: fusion, neck and logits with ``align_corners``, and unit length of rows
before the embedding's LayerNorm. Its images are BGR, normalised by ImageNet's numbers for RGB in that order.
"""

import torch
import torch.nn.functional as F

from protoseg.models.published.hrnet import hrnet_settings
from protoseg.models.published.kind import BENCHMARKS, Kind, State

_EPSILON = 1e-5  # of BatchNorm
_RULES = (
    (r"backbone\.(.+)", r"encoder.model.\1"),
    (r"cls_head\.0\.(.+)", r"decoder.fuse.0.0.\1"),
    (r"cls_head\.1\.0\.(.+)", r"decoder.fuse.0.1.\1"),
    (r"proj_head\.mlp2\.0\.(.+)", r"head.projection.0.\1"),
    (r"proj_head\.mlp2\.1\.(.+)", r"head.projection.1.\1"),
    (r"proj_head\.mlp2\.2\.(.+)", r"head.projection.3.\1"),
    (r"proj_head\.proj\..+", None),  # the same layers under their other name, which is loaded first
    (r"feat_norm\.(.+)", r"head.embedding_norm.\1"),
    (r"mask_norm\.(.+)", r"head.logit_norm.\1"),
    (r"(prototypes|updates|occupancy)", r"head.memory.\1"),
)


def _mend(state: State) -> State:
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


def _settings(state: State) -> list[str]:
    classes, prototypes, _ = state["head.memory.prototypes"].shape
    return [
        "experiment=protoseg_hrnet_w48",
        f"data={BENCHMARKS.get(classes, 'cityscapes')}",
        *hrnet_settings(state),
        f"head.num_prototypes={prototypes}",
        "++encoder.mean=[0.406,0.456,0.485]",
        "++encoder.std=[0.225,0.224,0.229]",
    ]


PROTOSEG = Kind("ProtoSeg", "proj_head.mlp2.0.weight", _RULES, _settings, _mend)
