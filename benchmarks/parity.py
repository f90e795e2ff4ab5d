"""How far the core on a device and in a precision is from fp64 on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from protoseg.functional.contrast import pixel_to_pixel
from protoseg.functional.prototypes import pixel_prototype_contrast, pixel_prototype_distance, sinkhorn
from protoseg.losses.segmentation import cross_entropy
from protoseg.nn import PrototypeHead

CPU = torch.device("cpu")


def errors(device: torch.device, dtype: torch.dtype, tiny: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """What was computed, and its largest differences over the largest value that is right, by result.

    Both sides get the same numbers, rounded to ``dtype`` first, so that the arithmetic alone differs. The head runs
    under autocast, as in training.
    """
    torch.manual_seed(0)
    n, c, k, d = (64, 3, 2, 8) if tiny else (16384, 19, 10, 720)
    cosines, label = torch.randn(n, k).to(dtype).clamp(-1, 1), torch.randint(0, c, (n,))
    plan = partial(sinkhorn, num_classes=c)
    yield "sinkhorn", {"plan": difference(plan(cosines.to(device), label.to(device)), plan(cosines.double(), label))}
    features, small = torch.randn(2, d, 8, n // 16).to(dtype), torch.randn(2, d, 8, min(n // 16, 128)).to(dtype)
    pixels = torch.randint(-1, c, (2, 8, n // 16))
    yield "head, clustering and losses", head_errors(features, pixels, c, k, device, dtype)
    yield (
        "cross-entropy",
        _loss_errors(partial(cross_entropy, label=pixels), torch.randn(2, c, 8, n // 16), device, dtype),
    )
    pixels = pixels[..., : small.shape[-1]]
    yield "pixel_to_pixel", _loss_errors(partial(pixel_to_pixel, label=pixels), small, device, dtype)


def difference(ours: Tensor, right: Tensor) -> float:
    """Largest absolute difference, over the largest value of ``right``."""
    right = right.detach().double()
    return float((ours.detach().cpu().double() - right).abs().max() / right.abs().max())


def _loss_errors(loss: partial[Tensor], x: Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    def both(x: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        x = x.to(device).requires_grad_()
        value = loss.func(x, loss.keywords["label"].to(device))
        return value, torch.autograd.grad(value, x)[0]

    x = x.to(dtype)
    pairs = zip(("loss", "gradient"), both(x, device), both(x.double(), CPU), strict=True)
    return {name: difference(ours, right) for name, ours, right in pairs}


def head_errors(
    features: Tensor, label: Tensor, classes: int, prototypes: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Of the head's logits, the losses, all gradients and the moved prototypes; and of the clustering the share of
    pixels that another prototype is chosen for."""
    head = PrototypeHead(features.shape[1], classes, prototypes)
    ours = _head(copy.deepcopy(head).to(device), features.to(device), label.to(device), dtype)
    right = _head(copy.deepcopy(head).double(), features.double(), label, torch.float64)
    out = {name: difference(ours[name], right[name]) for name in right if name != "target"}
    out["other prototype"] = float((ours["target"].cpu() != right["target"]).double().mean())
    return out


def _head(head: PrototypeHead, features: Tensor, label: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    low = dtype in (torch.bfloat16, torch.float16)
    features = (features.float() if low else features.clone()).detach().requires_grad_()
    with torch.autocast(features.device.type, dtype=dtype if low else torch.bfloat16, enabled=low):
        output = head(features)
    clustering, observation = head.memory.assign(output, label, 1)
    head.memory.observe_accumulated([observation])
    loss = (
        cross_entropy(output.logits, label)
        + pixel_prototype_contrast(output.similarities, clustering.target)
        + pixel_prototype_distance(output.similarities, clustering.target)
    )
    loss.backward()
    head.memory.step()
    gradients = torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])
    return {
        "logits": output.logits,
        "loss": loss,
        "feature gradient": features.grad,
        "weight gradient": gradients,
        "prototypes": head.memory.prototypes,
        "target": clustering.target,
    }
