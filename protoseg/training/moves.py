"""Moves of an adaptation step that a config may replace: callables that ``AdaptationModule`` is given."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protoseg.functional.mixing import class_mix_mask, cut_mix_mask, paste, strong_transform
from protoseg.losses import Target
from protoseg.types import IGNORE_INDEX, Batch


class Mixture(NamedTuple):
    """Images made of labelled and target images, or of target images alone, for the student."""

    image: Tensor  # uint8 ``b 3 H W``
    label: Tensor  # int64 ``b H W``: the labelled image's where that is pasted, else the teacher's
    reliable: Tensor  # the same, ``IGNORE_INDEX`` where the teacher is not sure: what prototypes follow
    pasted: Tensor  # pixels that come from another image, bool ``b H W``
    weight: Tensor  # of every pixel in the cross-entropy, fp32 ``b H W``


class ClassMix:
    """Pastes half of the labelled image's classes on the target image; colour jitter and blur (DACS, arXiv 2007.08702).

    Pasted pixels weigh 1, target pixels ``target_weight`` (0.8 in the released code of PGPC) times the pseudo-labels'
    quality. ``of_batch``, ``ignored``: of :func:`protoseg.functional.mixing.class_mix_mask`; ``colours``: of
    :func:`protoseg.functional.mixing.strong_transform`. A mix of one's own, named by ``method.mix._target_``, is a
    subclass that pastes other pixels (:meth:`mask`), or any callable with the same arguments and result. Raises
    ProtosegError: values that make no sense.
    """

    def __init__(
        self, of_batch: bool = False, ignored: bool = False, target_weight: float = 1.0, **colours: Any
    ) -> None:
        signature(strong_transform).bind(None, **colours)  # refuses others at once
        self.choice, self.target_weight, self.colours = (of_batch, ignored), target_weight, colours

    def mask(self, label: Tensor, num_classes: int) -> Tensor:
        """Pixels to paste, bool ``b H W``, of images with these labels ``b H W``."""
        return class_mix_mask(label, num_classes, *self.choice)

    def __call__(self, labelled: Batch, target: Target, num_classes: int, threshold: float) -> Mixture:
        """Mix image i with target image i, of the same size; labels of a confidence from ``threshold`` are reliable."""
        pasted = self.mask(labelled.label, num_classes)
        image = strong_transform(paste(pasted, labelled.image, target.image), **self.colours)
        sure = target.label.where(target.confidence >= threshold, IGNORE_INDEX)
        label, reliable = (paste(pasted, labelled.label, each) for each in (target.label, sure))
        weight = (self.target_weight * target.quality).expand(pasted.shape)
        return Mixture(image, label, reliable, pasted, paste(pasted, torch.ones_like(target.confidence), weight))


class CutMix(ClassMix):
    """Pastes a rectangle of another target image on each, with its pseudo-labels; labelled images are not mixed.

    French et al., BMVC 2020, arXiv 1906.01916. ``area``, ``probability``: of
    :func:`protoseg.functional.mixing.cut_mix_mask`; ``options``: of :class:`ClassMix`. In a batch of one image there is
    no other, and colours alone change.
    """

    def __init__(self, area: Sequence[float] = (0.5, 0.5), probability: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.area, self.probability = area, probability

    def __call__(self, labelled: Batch, target: Target, num_classes: int, threshold: float) -> Mixture:
        pasted = cut_mix_mask(target.label.shape, self.area, self.probability, target.label.device)
        sure = target.label.where(target.confidence >= threshold, IGNORE_INDEX)
        image, label, reliable = (paste(pasted, each.roll(1, 0), each) for each in (target.image, target.label, sure))
        weight = (self.target_weight * target.quality).expand(pasted.shape)
        return Mixture(strong_transform(image, **self.colours), label, reliable, pasted, weight)
