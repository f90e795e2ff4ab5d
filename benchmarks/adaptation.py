"""Cost of a whole training step of domain adaptation: DACS, DAFormer, and DAFormer with pixel contrast.

``floor``: what no method of a teacher and a student can do without, the network alone: one pass of the teacher without
gradient, two of the student with theirs (source, mixed), on the same images, and the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from protoseg.losses import CrossEntropy, FeatureDistance, MixedCrossEntropy, Term
from protoseg.losses.contrast_target import PrototypeGuidedContrast
from protoseg.models.decoders import FPNDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import ParametricHead
from protoseg.training import AdaptationModule
from protoseg.types import AdaptationBatch, Batch, LabelSpace


class AdaptationSetting(NamedTuple):
    """Sizes of the step; the defaults are those of experiment=small_pgpc data=camvid_day_to_dusk."""

    batch: int = 4
    height: int = 240
    width: int = 320
    classes: int = 11

    def describe(self) -> str:
        return f"lite0 + FPN, {self.batch} + {self.batch} x {self.height} x {self.width}, C={self.classes}"


def adaptation_steps(setting: AdaptationSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """The steps by method."""
    s = setting
    torch.manual_seed(0)
    label = torch.randint(0, s.classes, (s.batch, s.height // 8, s.width // 8))
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2).to(device)
    image = torch.randint(0, 256, (s.batch, 3, *label.shape[1:]), dtype=torch.uint8, device=device)
    size = torch.tensor([label.shape[1:]] * s.batch)
    batch = AdaptationBatch(*(Batch(image, label, size, [""] * s.batch) for _ in range(2)))
    mixed = {"mixed": MixedCrossEntropy()}
    methods: dict[str, tuple[dict[str, Term], dict[str, Term]]] = {
        "dacs": ({}, {**mixed}),
        "daformer": ({"feature_distance": FeatureDistance()}, {**mixed}),
        "daformer + pgpc": ({"feature_distance": FeatureDistance()}, {**mixed, "contrast": PrototypeGuidedContrast()}),
    }
    floor = partial(_floor, *_trained(s, *methods["dacs"], device), batch)
    return {
        "floor": floor,
        **{name: partial(_step, *_trained(s, *terms, device), batch) for name, terms in methods.items()},
    }


def _trained(
    setting: AdaptationSetting, source_terms: dict[str, Term], terms: dict[str, Term], device: torch.device
) -> tuple[AdaptationModule, torch.optim.Optimizer]:
    """A module as the trainer holds it, without the trainer. Every pixel is reliable: the most work there can be."""
    names = tuple(map(str, range(setting.classes)))
    space = LabelSpace("benchmark", names, tuple((i, i, i) for i in range(setting.classes)), things=names[-4:])
    decoder = partial(FPNDecoder, pyramid_channels=128, segmentation_channels=64)
    model = Segmentor(TimmEncoder("tf_efficientnet_lite0"), decoder, ParametricHead, setting.classes)
    module = AdaptationModule(
        model=model.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        label_space=space,
        losses={"ce": CrossEntropy()},
        optimizer=torch.optim.AdamW,
        schedule=torch.optim.lr_scheduler.ConstantLR,
        source_terms=source_terms,
        terms=terms,
        threshold=1e-6,
    ).to(device)
    alone: Any = module
    alone._trainer = SimpleNamespace(log_every_n_steps=10**9, accumulate_grad_batches=1, global_step=1)
    alone.log = alone.log_dict = lambda *args, **kwargs: None
    return module.train(), torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])


def _step(module: AdaptationModule, optimizer: torch.optim.Optimizer, batch: AdaptationBatch) -> None:
    """Forward passes, losses, backward, and the updates of student, teacher, queues and prototypes."""
    outputs = module.training_step(batch, 0)
    optimizer.zero_grad()
    outputs["loss"].backward()
    optimizer.step()
    module.after_optimizer_step()
    trainer: Any = module.trainer
    trainer.global_step += 1


def _floor(module: AdaptationModule, optimizer: torch.optim.Optimizer, batch: AdaptationBatch) -> None:
    """The three passes of the network; the gradients are those of a sum."""
    optimizer.zero_grad()
    with torch.no_grad():
        module.teacher(batch.target.image)
    for image in (batch.source.image, batch.target.image):
        module.model(image).logits.sum().backward()
    optimizer.step()
