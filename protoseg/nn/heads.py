"""From the decoder's map to class logits: by nearest prototype, or by a learned softmax classifier (its twin)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.sampling import pixel_rows
from protoseg.nn.prototype_memory import PrototypeMemory
from protoseg.types import ProtosegError, SegOutput

LOGITS = ("layernorm", "temperature")
NO_CHANNEL = -1e4  # logit of a class without a channel: interpolation would make NaN of -inf


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1 x 1 convolutions with BatchNorm and ReLU between: the map in which pixels are embedded."""
    return nn.Sequential(*Conv2dNormActivation(in_channels, in_channels, 1), nn.Conv2d(in_channels, out_channels, 1))


class Head(nn.Module, ABC):
    """From the decoder's map to class logits; the base of all heads, made by ``(in_channels, num_classes)``."""

    embedding_dim: int  # channels of ``SegOutput.embeddings``
    memory: PrototypeMemory | None  # the prototypes of its classes, None where it has none

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_classes, self.embedding_dim, self.memory = num_classes, embedding_dim, None

    @abstractmethod
    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w`` and embeddings ``b d h w``."""

    def can_change_classes(self) -> bool:
        """Whether classes can be added and taken out by their prototypes alone, no learned weight being one class's."""
        return False


class PrototypeHead(Head):
    """Non-parametric classifier: a pixel's class is that of its nearest prototype (ProtoSeg, Eq. 5 and 6).

    Args:
        num_prototypes: K, prototypes per class.
        embedding_dim: channels of the embedding; ``in_channels`` by default.
        logits: ``temperature`` (class scores / ``temperature``; no learned parameter) or ``layernorm`` over the class
            scores (released code; 2 c learned parameters).
        embedding_norm: LayerNorm over channels before the embedding is made unit length (released code).
        row_norm: every row of every channel gets unit length before that LayerNorm. The released code does so, its
            normalisation of channels running along the last dimension, which there is the width.
        offset: taken from class scores, before they are divided by ``temperature``: of no account to softmax.
        memory: keyword arguments of :class:`PrototypeMemory`: momentum, momentum_warmup, init, assignment, …

    Raises ProtosegError: unknown ``logits``, non-positive temperature or sizes.
    """

    memory: PrototypeMemory

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_prototypes: int = 10,
        embedding_dim: int | None = None,
        logits: str = "temperature",
        temperature: float = 0.1,
        embedding_norm: bool = True,
        row_norm: bool = False,
        offset: float = 0.0,
        **memory: Any,
    ) -> None:
        dim = embedding_dim or in_channels
        super().__init__(num_classes, dim)
        if logits not in LOGITS or temperature <= 0:
            text = f"prototype head: expected logits in {LOGITS} and temperature > 0"
            raise ProtosegError(f"{text}, got {logits=}, {temperature=}")
        self.temperature, self.row_norm, self.offset = temperature, row_norm, offset
        self.projection = projection(in_channels, dim)
        self.embedding_norm = nn.LayerNorm(dim) if embedding_norm else nn.Identity()
        self.logit_norm = nn.LayerNorm(num_classes) if logits == "layernorm" else None
        self.memory = PrototypeMemory(num_classes, num_prototypes, dim, **memory)

    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w``, unit embeddings ``b d h w``, cosines of its ``b h w`` pixels."""
        if not self.training:
            self.memory.check_moved()
        projected = self.projection(features)
        b, _, h, w = projected.shape
        with no_autocast(projected):
            projected = at_least_fp32(projected)
            projected = F.normalize(projected, dim=3) if self.row_norm else projected
            embeddings = F.normalize(self.embedding_norm(pixel_rows(projected)), dim=1)
            similarities = self.memory.similarity(embeddings)
            scores = similarities.scores - self.offset if self.offset else similarities.scores
            logits = self.logit_norm(scores) if self.logit_norm is not None else scores / self.temperature
        logits, embeddings = (x.view(b, h, w, -1).permute(0, 3, 1, 2) for x in (logits, embeddings))
        return SegOutput(logits, embeddings, similarities)

    def can_change_classes(self) -> bool:
        return self.logit_norm is None


class ParametricHead(Head):
    """The softmax twin of :class:`PrototypeHead`: the same projection, then a learned linear classifier."""

    def __init__(self, in_channels: int, num_classes: int, embedding_dim: int | None = None) -> None:
        dim = embedding_dim or in_channels
        super().__init__(num_classes, dim)
        self.projection = projection(in_channels, dim)
        self.classifier = nn.Conv2d(dim, num_classes, 1)

    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w`` and embeddings ``b d h w`` (not of unit length)."""
        embeddings = self.projection(features)
        return SegOutput(logits=at_least_fp32(self.classifier(torch.relu(embeddings))), embeddings=embeddings)


class AtrousHead(Head):
    """DeepLabV2's classifier: 3 x 3 convolutions of several dilations from the map to the classes, added up.

    Chen et al., arXiv 1606.00915: dilations 6, 12, 18, 24; in the codes of AdaptSegNet, DACS and others the first two.
    """

    def __init__(self, in_channels: int, num_classes: int, dilations: Sequence[int] = (6, 12)) -> None:
        super().__init__(num_classes, in_channels)
        convs = (nn.Conv2d(in_channels, num_classes, 3, padding=d, dilation=d) for d in dilations)
        self.branches = nn.ModuleList(convs)

    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w``; the embeddings are the features themselves."""
        logits = torch.stack([at_least_fp32(branch(features)) for branch in self.branches]).sum(0)
        return SegOutput(logits=logits, embeddings=features)


class LinearHead(Head):
    """A learned linear classifier straight on the decoder's map, as in DAFormer, HRDA and most of the field."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(num_classes, in_channels)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w``; the embeddings are the features themselves."""
        return SegOutput(logits=at_least_fp32(self.classifier(features)), embeddings=features)


class LogitsHead(Head):
    """Of a network that classifies itself: the map it gives is the logits, and the embeddings.

    ``channel_class`` says of which class each channel is, -1 of none; without it channel i is class i. The probability
    of a class is the sum of its channels'; one without a channel, as it was taught after the training, is never found.
    """

    def __init__(self, in_channels: int, num_classes: int, channel_class: Sequence[int] | None = None) -> None:
        super().__init__(num_classes, in_channels)
        of = [*range(num_classes)] if channel_class is None else list(channel_class)
        if len(of) != in_channels:
            raise ProtosegError(f"LogitsHead: expected a channel for each of {num_classes} classes, got {in_channels}")
        of_each = [[j for j, c in enumerate(of) if c == i] for i in range(num_classes)]
        self.own = None if of == [*range(num_classes)] else of_each  # None: the channels are the classes

    def forward(self, features: Tensor) -> SegOutput:
        """``b in_channels h w`` to logits ``b c h w``."""
        logits = at_least_fp32(features)
        if self.own is not None:
            nothing = torch.full_like(logits[:, 0], NO_CHANNEL)
            logits = torch.stack([logits[:, js].logsumexp(1) if js else nothing for js in self.own], 1)
        return SegOutput(logits=logits, embeddings=features)

    def can_change_classes(self) -> bool:
        return True
