"""Gradient checkpointing: the backward pass recomputes an encoder's blocks instead of keeping what is inside them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from protoseg.types import ProtosegError

LISTS = (nn.Sequential, nn.ModuleList)


def recompute_blocks(model: nn.Module, name: str) -> None:
    """Of each block of ``model`` keep only the input for the backward pass, which runs the block again.

    Gradients, dropout and running statistics are those of the model as it was. timm's own ``set_grad_checkpointing``
    moves BatchNorm's running statistics twice a step, and does not take HRNet. Names in the ``state_dict`` stay;
    ``name`` is for the message. Raises ProtosegError: less than half of the weights are in blocks in lists of layers.
    """
    blocks = _innermost_blocks(model)
    share = sum(_size(block) for block in blocks) / max(_size(model), 1)
    if share < 0.5:
        wanted = "an encoder made of lists of blocks (ResNet, HRNet, EfficientNet, ConvNeXt, Swin, ViT, MiT, …)"
        text = f"encoder.grad_checkpointing: expected {wanted}, got {name!r} with {share:.0%} of its weights in such"
        raise ProtosegError(f"{text}; set it to false or choose another encoder")
    for block in blocks:
        block.forward = partial(_recomputed, block.forward, block)  # type: ignore[method-assign]


def _innermost_blocks(model: nn.Module) -> list[nn.Module]:
    """Members of lists of layers that have several layers with weights, and no such member inside."""
    members = (member for layers in model.modules() if isinstance(layers, LISTS) for member in layers)
    inside = {member: [*member.modules()] for member in members if not isinstance(member, LISTS)}
    blocks = {m for m, parts in inside.items() if sum(bool([*part.parameters(recurse=False)]) for part in parts) > 1}
    return [block for block, (_, *parts) in inside.items() if block in blocks and blocks.isdisjoint(parts)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _recomputed(forward: Callable[..., Any], block: nn.Module, *inputs: Any, **more: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **more)
    if not torch.compiler.is_compiling():  # a compiled block moves its statistics once by itself, and takes no contexts
        more["context_fn"] = lambda: (nullcontext(), unmoved_statistics(block))  # they hold the batch at the second run
    return checkpoint(forward, *inputs, use_reentrant=False, **more)


@contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm normalises by the batch, as ever in training, but its running statistics stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    # Not by track_running_stats, without which gradient checkpointing would find other tensors in the second run.
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
