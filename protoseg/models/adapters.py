"""Adapters of frozen encoders: LoRA (Hu et al., arXiv 2106.09685), Rein (Wei et al., CVPR 2024, arXiv 2312.04265)."""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protoseg.types import ProtosegError

ORIGINAL = ".parametrizations.weight.original"  # an adapted layer's name for its ``.weight``
RANK = 16  # of Rein's tokens of a block, as in the released code


class LowRank(nn.Module):
    """``W + B A`` for a weight ``out in`` and a rank r; B begins as zeros, so that nothing changes. A: ``r in``."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapt(model: nn.Module, rank: int, name: str) -> None:
    """Freeze ``model``'s weights, and let the linear layers of its attention learn an update of ``rank``, in place.

    Raises ProtosegError: a rank below 1, or a model (``name`` is for the message) without attention.
    """
    named = model.named_modules()
    layers = [layer for key, layer in named if isinstance(layer, nn.Linear) and re.search(r"\battn\.", key)]
    if rank < 1 or not layers:
        wanted = "expected 1 or more, and an encoder with attention (plain ViT, Swin)"
        raise ProtosegError(f"encoder.lora_rank: {wanted}, got {rank} and {name!r}; set encoder.lora_rank=null")
    model.requires_grad_(False)
    for layer in layers:  # unsafe: no trial run, which tensors without numbers do not stand
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank), unsafe=True)


def merge(model: nn.Module) -> None:
    """Add the updates to the weights and take them away, in place: the same network without LoRA."""
    layers: Any = model.modules()
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            weight = nn.Parameter(layer.weight.detach())
            # not torch's remove_parametrizations, which takes the weight from copies of the layer too
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.register_parameter("weight", weight)


class Rein(nn.Module):
    """``tokens`` learned tokens of rank ``RANK`` for each of ``blocks``, and two linear layers that the blocks share.

    With a block's tokens T, the features f ``b n width`` of image patches become f + delta(A value(T) + f), where A =
    softmax(f T' / sqrt(width)) without the first token's column, whose share is not refined (Eq. 3 to 9, without the
    link to object queries). ``delta`` begins as zeros: nothing changes. ``prefix`` features, class and registers, pass.
    """

    def __init__(self, blocks: int, width: int, tokens: int, prefix: int) -> None:
        super().__init__()
        self.prefix, self.scale = prefix, width**-0.5
        # The bound is the released code's at the size of ViT-L/14; it hardly changes with the width.
        self.down = nn.Parameter(torch.empty(blocks, tokens, RANK).uniform_(-0.09, 0.09))
        self.up = nn.Parameter(torch.empty(blocks, RANK, width).uniform_(-0.09, 0.09))
        self.value, self.delta = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.delta.weight)
        nn.init.zeros_(self.delta.bias)

    def forward(self, number: int, block: Any, inputs: Any, features: Tensor) -> Tensor:
        """A forward hook of a block, after its ``number``."""
        tokens = self.down[number] @ self.up[number]
        first, patches = features[:, : self.prefix], features[:, self.prefix :]
        attention = (patches @ tokens.T * self.scale).softmax(dim=-1)[..., 1:]
        return torch.cat([first, patches + self.delta(attention @ self.value(tokens[1:]) + patches)], dim=1)


def refine(vit: Any, tokens: int, name: str) -> Rein:
    """Freeze the weights of timm's ``vit``; what its blocks return passes through the :class:`Rein` that is returned.

    Raises ProtosegError: less than two tokens, or a model (``name`` is for the message) that is no plain ViT.
    """
    if tokens < 2 or not hasattr(vit, "num_prefix_tokens"):
        wanted = "expected 2 or more, and a plain ViT"
        raise ProtosegError(f"encoder.rein_tokens: {wanted}, got {tokens} and {name!r}; set encoder.rein_tokens=null")
    vit.requires_grad_(False)
    rein = Rein(len(vit.blocks), vit.embed_dim, tokens, vit.num_prefix_tokens)
    for number, block in enumerate(vit.blocks):
        block.register_forward_hook(partial(rein, number))
    return rein
