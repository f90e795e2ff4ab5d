"""protoseg without Hydra and Lightning: a whole network in a loop of one's own, and its head on one's own network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import protoseg
from protoseg.functional.prototypes import pixel_prototype_contrast
from protoseg.nn import PrototypeHead


def train(batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str], path: str, *overrides: str) -> None:
    """Images ``b 3 h w`` and labels ``b h w`` (-1 ignored) to a checkpoint that ``protoseg.load`` opens."""
    network = protoseg.build(classes, *overrides, encoder="resnet50", decoder="fpn", head="prototype")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for image, label in batches:
        loss = network.loss(image, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.after_optimizer_step()  # moves the prototypes; without it they stay where they are
    network.save(path)


def loss_of_own_network(body: nn.Module, head: PrototypeHead, image: Tensor, label: Tensor, stride: int) -> Tensor:
    """The head on any network that gives maps ``b d h w``; after the optimizer's step: ``head.memory.step()``."""
    output = head(body(image))
    clustering, observation = head.memory.assign(output, label, stride)
    head.memory.observe_accumulated([observation])
    logits = F.interpolate(output.logits, size=label.shape[1:], mode="bilinear")
    contrast = pixel_prototype_contrast(output.similarities, clustering.target, temperature=0.1)
    return F.cross_entropy(logits, label, ignore_index=-1) + 0.01 * contrast
