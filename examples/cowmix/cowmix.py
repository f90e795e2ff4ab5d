"""CowMix (French et al., 2020, arXiv 2003.12022): patches like those of a cow's hide are pasted, not classes."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from protoseg.training.moves import ClassMix
from protoseg.types import ProtosegError


class CowMix(ClassMix):
    """Pastes where smoothed noise is high, about ``share`` of the labelled image's area; otherwise as ClassMix.

    Args:
        share: in (0, 1); drawn from the whole of it in the paper.
        sigma: the least and the most standard deviation of the smoothing, in pixels, drawn anew for each image.
        options: of ClassMix: jitter, jitter_probability, blur.
    """

    def __init__(self, share: float = 0.5, sigma: tuple[float, float] = (4.0, 16.0), **options: float | bool) -> None:
        super().__init__(**options)
        if not 0 < share < 1:
            raise ProtosegError(f"method.mix.share: expected a number in (0, 1), got {share}")
        self.share, self.sigma = share, sigma

    def mask(self, label: Tensor, num_classes: int) -> Tensor:
        """The patches of each image, bool ``b H W``."""
        least, most = self.sigma
        smooth = []
        for noise in torch.randn(len(label), 1, *label.shape[1:], device=label.device):
            sigma = least * (most / least) ** float(torch.rand(()))  # log-uniform
            reach = min(math.ceil(3 * sigma), *(side - 1 for side in label.shape[1:]))  # mirrored at the borders
            smooth.append(gaussian_blur(noise, [2 * reach + 1] * 2, [sigma, sigma]))
        field = torch.cat(smooth)
        mean, deviation = field.mean((1, 2), keepdim=True), field.std((1, 2), keepdim=True)
        return field > mean + deviation * NormalDist().inv_cdf(1 - self.share)
