"""Moves of an adaptation step that a config may replace: callables that ``AdaptationModule`` is given."""

from typing import NamedTuple

import torch
from torch import Tensor

from protoseg.functional.mixing import class_mix_mask, paste, strong_transform
from protoseg.losses import Target
from protoseg.types import IGNORE_INDEX, Batch, ProtosegError


class Mixture(NamedTuple):
    """Images made of labelled and target images, for the student.

    Attributes:
        image: uint8 ``b 3 H W``.
        label: int64 ``b H W``: the labelled image's where pasted, else the teacher's.
        reliable: the same, ``IGNORE_INDEX`` where the teacher is not sure: what prototypes follow.
        pasted: pixels that come from the labelled image, bool ``b H W``.
        weight: of every pixel in the cross-entropy, fp32 ``b H W``.
    """

    image: Tensor
    label: Tensor
    reliable: Tensor
    pasted: Tensor
    weight: Tensor


class ClassMix:
    """Pastes half of the labelled image's classes on the target image; colour jitter and blur (DACS, arXiv 2007.08702).

    Pasted pixels weigh 1, target pixels ``target_weight`` times the pseudo-labels' quality. A mix of one's own, named
    by ``method.mix._target_``, is a subclass that pastes other pixels (:meth:`mask`), or any callable with the same
    arguments and result.

    Args:
        jitter, jitter_probability, blur, kornia: see :func:`protoseg.functional.mixing.strong_transform`.
        of_batch, ignored: see :func:`protoseg.functional.mixing.class_mix_mask`.
        target_weight: 1, or 0.8 in the released code of PGPC.

    Raises:
        ProtosegError: values that make no sense.
    """

    def __init__(
        self,
        jitter: float = 0.2,
        jitter_probability: float = 0.8,
        blur: bool = True,
        kornia: bool = False,
        of_batch: bool = False,
        ignored: bool = False,
        target_weight: float = 1.0,
    ) -> None:
        if jitter < 0 or not 0 <= jitter_probability <= 1:
            raise ProtosegError(
                f"method.mix: expected jitter of at least 0 and jitter_probability in [0, 1], got {jitter} and "
                f"{jitter_probability}"
            )
        self.colours = (jitter, jitter_probability, blur, kornia)
        self.choice, self.target_weight = (of_batch, ignored), target_weight

    def mask(self, label: Tensor, num_classes: int) -> Tensor:
        """Pixels to paste, bool ``b H W``, of images with these labels ``b H W``."""
        return class_mix_mask(label, num_classes, *self.choice)

    def __call__(self, labelled: Batch, target: Target, num_classes: int, threshold: float) -> Mixture:
        """Mix image i with target image i.

        Args:
            labelled: images with labels.
            target: as many images of the same size, with pseudo-labels.
            num_classes: number of classes.
            threshold: confidence from which a pseudo-label is reliable.
        """
        pasted = self.mask(labelled.label, num_classes)
        image = paste(pasted, labelled.image, target.image)
        image = strong_transform(image, *self.colours)
        weight = (self.target_weight * target.quality).expand(pasted.shape)
        reliable = target.label.where(target.confidence >= threshold, IGNORE_INDEX)
        return Mixture(
            image=image,
            label=paste(pasted, labelled.label, target.label),
            reliable=paste(pasted, labelled.label, reliable),
            pasted=pasted,
            weight=paste(pasted, torch.ones_like(target.confidence), weight),
        )
