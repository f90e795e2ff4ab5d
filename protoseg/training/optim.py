"""Parameter groups (encoder and decoder learning rates, no decay for norms) and the poly schedule by steps."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from protoseg.types import ProtosegError

_OURS = ("encoder.pyramid.", "encoder.rein.")
_BLOCK = re.compile(r"\b(?:blocks|stages|layers)[._](\d+)\.")


def parameter_groups(
    model: nn.Module,
    lr: float,
    encoder_lr: float | None = None,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] | None = None,
    layer_decay: float | None = None,
) -> list[dict]:
    """Up to four named groups: encoder / decoder, each with and without weight decay; ``encoder_lr`` is ``lr`` if None.

    ``model`` is a ``Segmentor``, or a LightningModule that holds one; frozen parameters are left out. Loss terms' go
    with the decoder, and a plain ViT's pyramid and Rein, which no file brings. Not decayed are parameters with one axis
    (norm scales, biases); or, with ``no_decay``, those with one of these words in their names: ``[norm]`` in the
    released codes of SegFormer, DAFormer, HRDA and MIC (which decay the decoder's biases and BatchNorms), ``[]`` in
    that of ProtoSeg. With ``layer_decay`` d, block i of n of the encoder learns at ``encoder_lr`` times d^(n - i), i
    from 0, what comes before the blocks at d^(n + 1) (Bao et al., BEiT, arXiv 2106.08254), each in groups of its own.
    Raises ProtosegError: with it, an encoder that is frozen, or whose blocks are in no list.
    """
    groups: dict[str, dict] = {}
    learned = [(name.removeprefix("model."), x) for name, x in model.named_parameters() if x.requires_grad]
    encoder = [name for name, _ in learned if name.startswith("encoder.") and not name.startswith(_OURS)]
    depth = {name: int(found[1]) + 1 if (found := _BLOCK.search(name)) else 0 for name in encoder}
    blocks = max(depth.values(), default=0)
    if layer_decay is not None and blocks < 2:
        wanted = "an encoder that learns, with its blocks in one list (plain ViT, ConvNeXt, Swin)"
        got = "another" if encoder else "a frozen one"
        raise ProtosegError(f"optimizer.layer_decay: expected {wanted}, got {got}; set optimizer.layer_decay=null")
    for name, parameter in learned:
        part = "encoder" if name in depth else "decoder"
        rate = lr if encoder_lr is None or part == "decoder" else encoder_lr
        if layer_decay is not None and name in depth:
            part, rate = f"encoder_{depth[name]}", rate * layer_decay ** (blocks + 1 - depth[name])
        spared = parameter.ndim <= 1 if no_decay is None else any(word in name for word in no_decay)
        new = {"params": [], "lr": rate, "weight_decay": 0.0 if spared else weight_decay}
        groups.setdefault(f"{part}_no_decay" if spared else part, new)["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items()]


def build_optimizer(model: nn.Module, optimizer: Callable[..., Optimizer], **groups: Any) -> Optimizer:
    """The given optimizer class, fused on a CPU, over :func:`parameter_groups`, whose arguments ``groups`` are."""
    option = signature(optimizer).parameters.get("fused")
    # A quarter of the time on a CPU; a GPU's would not let Lightning clip gradients under fp16.
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    fused = {"fused": True} if option and option.default is None and on_cpu else {}
    return optimizer(parameter_groups(model, **groups), **fused)


def poly_factor(
    step: int,
    total_steps: int,
    power: float = 0.9,
    warmup_steps: int = 0,
    warmup_start: float = 1e-6,
    warmup_times_poly: bool = False,
) -> float:
    """Learning-rate factor at ``step``: linear from ``warmup_start`` to 1, then (1 - t)^power to 0 at the end.

    With ``warmup_times_poly``, t runs over all steps, and the warm-up is multiplied with the decay, as in mmcv.
    """
    warm = warmup_start + (1 - warmup_start) * step / warmup_steps if step < warmup_steps else 1.0
    begin = 0 if warmup_times_poly else warmup_steps
    progress = max(0, step - begin) / max(1, total_steps - begin)
    return warm * (1 - min(progress, 1.0)) ** power


def poly_schedule(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, **factor: Any) -> LambdaLR:
    """:func:`poly_factor` over optimizer steps; ProtosegError: warm-up as long as the whole training."""
    if warmup_steps >= total_steps > 0:
        raise ProtosegError(f"schedule.warmup_steps: expected fewer than max_steps={total_steps}, got {warmup_steps}")
    return LambdaLR(optimizer, partial(poly_factor, total_steps=total_steps, warmup_steps=warmup_steps, **factor))
