"""LoRA: low-rank updates of frozen weights (Hu et al., arXiv 2106.09685)."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protoseg.types import ProtosegError

ORIGINAL = ".parametrizations.weight.original"  # an adapted layer's name for its ``.weight``


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
        raise ProtosegError(
            f"encoder.lora_rank: expected 1 or more, and an encoder with attention (plain ViT, Swin), got {rank} and "
            f"{name!r}; set encoder.lora_rank=null"
        )
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
