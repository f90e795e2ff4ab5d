"""Parameter groups (encoder and decoder learning rates, no decay for norms) and the poly schedule by steps."""

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from protoseg.types import ProtosegError


def parameter_groups(model: nn.Module, lr: float, encoder_lr: float, weight_decay: float) -> list[dict]:
    """Up to four named groups: encoder / decoder, each with and without weight decay.

    ``model`` is a ``Segmentor``, or a LightningModule that holds one and perhaps loss terms with parameters, which go
    with the decoder. Parameters with one axis (norm scales, biases) are not decayed. Frozen parameters are left out.
    """
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.removeprefix("model.").startswith("encoder.") else "decoder"
        decayed = parameter.ndim > 1
        group = groups.setdefault(
            part if decayed else f"{part}_no_decay",
            {
                "params": [],
                "lr": encoder_lr if part == "encoder" else lr,
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items()]


def build_optimizer(
    model: nn.Module,
    optimizer: Callable[..., Optimizer],
    lr: float,
    encoder_lr: float | None = None,
    weight_decay: float = 0.0,
) -> Optimizer:
    """The given optimizer class over :func:`parameter_groups`; ``encoder_lr`` is ``lr`` unless given."""
    return optimizer(parameter_groups(model, lr, lr if encoder_lr is None else encoder_lr, weight_decay))


def poly_factor(step: int, total_steps: int, power: float, warmup_steps: int, warmup_start: float) -> float:
    """Learning-rate factor at ``step``: linear from ``warmup_start`` to 1, then (1 - t)^power to 0 at the end."""
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return (1 - min(progress, 1.0)) ** power


def poly_schedule(
    optimizer: Optimizer, total_steps: int, power: float = 0.9, warmup_steps: int = 0, warmup_start: float = 1e-6
) -> LambdaLR:
    """The field's poly schedule, counted in optimizer steps, with linear warm-up.

    Raises:
        ProtosegError: warm-up as long as the whole training.
    """
    if warmup_steps >= total_steps > 0:
        raise ProtosegError(
            f"schedule.warmup_steps: expected fewer than trainer.max_steps={total_steps}, got {warmup_steps}"
        )
    return LambdaLR(optimizer, lambda step: poly_factor(step, total_steps, power, warmup_steps, warmup_start))
