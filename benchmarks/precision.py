"""Speed and memory of a whole training step in fp32, in bf16, and in bf16 with ``torch.compile``, of both twins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from benchmarks.twins import learn_from
from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Term
from protoseg.models.decoders import HRNetDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import Head, ParametricHead, PrototypeHead
from protoseg.types import ProtosegError


class PrecisionSetting(NamedTuple):
    """Sizes; the defaults are those of experiment=cityscapes_hrnet_w48_prototype.

    ``hrnet`` is the width of the encoder, ``compiled=0`` leaves out ``torch.compile``, which takes minutes to start.
    """

    batch: int = 8
    height: int = 512
    width: int = 1024
    classes: int = 19
    prototypes: int = 10
    hrnet: int = 48
    compiled: int = 1

    @property
    def images(self) -> int:
        """Of one step, for the images per second."""
        return self.batch

    def describe(self) -> str:
        s = self
        return f"HRNet-W{s.hrnet}, {s.batch} x {s.height} x {s.width}, C={s.classes}, K={s.prototypes}"


def precision_steps(setting: PrecisionSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """The steps by precision and head, the softmax twin before the prototypes.

    "fp32" is what torch makes of it: on GPUs that have TF32, convolutions are computed in it.

    Raises:
        ProtosegError: no HRNet of that width.
    """
    s, generator = setting, torch.Generator().manual_seed(0)
    if not timm.is_model(f"hrnet_w{s.hrnet}"):
        widths = ", ".join(name.removeprefix("hrnet_w") for name in timm.list_models("hrnet_w??"))
        raise ProtosegError(f"--hrnet: expected one of {widths}, got {s.hrnet}")
    torch.compiler.reset()  # graphs of earlier settings count towards torch's limit
    image = torch.randint(0, 256, (s.batch, 3, s.height, s.width), dtype=torch.uint8, generator=generator).to(device)
    label = torch.randint(0, s.classes, (s.batch, s.height // 8, s.width // 8), generator=generator)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2).to(device)
    steps: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16", "bf16 + compile") if s.compiled else ("fp32", "bf16"):
        for name, (head, more) in _twins(s.prototypes).items():
            torch.manual_seed(0)
            model = Segmentor(TimmEncoder(f"hrnet_w{s.hrnet}"), HRNetDecoder, head, s.classes).train()
            model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if "compile" in precision:
                model.compile(dynamic=False)
            terms = [CrossEntropy(), *more]
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
            steps[f"{name} {precision}"] = partial(_step, "bf16" in precision, model, terms, optimizer, image, label)
    return steps


def _twins(prototypes: int) -> dict[str, tuple[Callable[[int, int], Head], list[Term]]]:
    head = partial(PrototypeHead, num_prototypes=prototypes, logits="layernorm")
    return {
        "parametric": (ParametricHead, []),
        "prototype": (head, [PixelPrototypeContrast(), PixelPrototypeDistance()]),
    }


def _step(
    half: bool, model: Segmentor, terms: list[Term], optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor
) -> None:
    """Forward, assignment, losses, backward, and the updates of weights and prototypes."""
    optimizer.zero_grad()
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=half):
        output = model(image)
    learn_from(output, model.head, terms, label, model.stride)
    optimizer.step()
