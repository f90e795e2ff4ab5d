"""ClassMix, CutMix, the strong augmentation of mixed images, MIC's patch masks, on whatever device the images are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from protoseg.functional.resize import grid_size
from protoseg.types import IGNORE_INDEX, ProtosegError, Size

BLUR_KERNEL = 9  # covers four standard deviations of the widest blur
BLUR_SIGMA = (0.15, 1.15)


def class_mix_mask(label: Tensor, num_classes: int, of_batch: bool = False, ignored: bool = False) -> Tensor:
    """Pixels of half of the classes of each image (rounded up), chosen at random: bool ``b H W``.

    ClassMix (Olsson et al., arXiv 2007.07936). Of labels int64 ``b H W``; with ``of_batch`` from the classes of all
    images, as DAFormer's released code does (not DACS's), and with ``ignored`` the ignored label is a class that may be
    pasted, as in the released codes.
    """
    b = len(label)
    ids = label.where(label != IGNORE_INDEX, num_classes).flatten(1)
    present = torch.zeros(b, num_classes + 1, dtype=torch.bool, device=label.device).scatter_(1, ids, True)
    if of_batch:
        present = present.any(0).repeat(b, 1)
    present[:, num_classes] &= ignored
    # A random rank among the classes present: absent ones come last.
    rank = torch.rand(b, num_classes + 1, device=label.device).where(present, 2.0).argsort(1).argsort(1)
    chosen = present & (rank < (present.sum(1, keepdim=True) + 1) // 2)
    return chosen.gather(1, ids).view_as(label)


def cut_mix_mask(
    shape: Sequence[int], area: Sequence[float] = (0.5, 0.5), probability: float = 1.0, device: Any = None
) -> Tensor:
    """A rectangle in each image (CutMix as of French et al., BMVC 2020, arXiv 1906.01916): bool of ``shape`` ``b H W``.

    Its share of the image is uniform in ``area``, and the logarithm of its height. 1 - ``probability``: there is none.
    """
    share, power, top, left, chance = torch.rand(5, shape[0], 1, 1, device=device)
    share = area[0] + (area[1] - area[0]) * share
    inside = chance < probability
    for axis, length, place in ((1, share**power, top), (2, share ** (1 - power), left)):
        centre = (torch.arange(shape[axis], device=device).view(-1, *(1,) * (2 - axis)) + 0.5) / shape[axis]
        inside = inside & ((centre - place * (1 - length) - length / 2).abs() <= length / 2)
    return inside


def paste(pasted: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """``source`` where ``pasted`` (bool ``b H W``), else ``target``; both ``b H W`` or ``b c H W``."""
    return source.where(pasted if source.ndim == pasted.ndim else pasted.unsqueeze(1), target)


def strong_transform(
    image: Tensor, jitter: float = 0.2, jitter_probability: float = 0.8, blur: bool = True, kornia: bool = False
) -> Tensor:
    """Colour jitter and Gaussian blur, drawn anew for every image: uint8 RGB ``b 3 H W`` to the same.

    The strengths of DACS and DAFormer: brightness, contrast, saturation and hue by up to ``jitter``, in four of five
    images; a blur of sigma 0.15 to 1.15 in every second one. ``kornia``: by the formulas of :func:`kornia_jitter`.
    Of other channels (float in [0, 1], ``b c H W``) brightness and contrast are changed, all by one factor.
    """
    return torch.stack([_transform_one(one, jitter, jitter_probability, blur, kornia) for one in image])


def kornia_jitter(image: Tensor, shifts: list[float], order: list[int]) -> Tensor:
    """Colour jitter of kornia 0.5, which the released codes of DAFormer, HRDA and MIC use: uint8 ``3 H W`` to the same.

    Brightness is added, contrast is a factor about black, saturation a factor of that of HSV, each clamped to [0, 1].
    ``shifts`` are of brightness, contrast, saturation (from a factor of 1) and hue (of the whole circle), ``order``
    that of these four by their numbers.
    """
    colour = image.float() / 255
    for step in order:
        shift = shifts[step]
        if step < 2:
            colour = (colour * (1 + shift) if step else colour + shift).clamp(0, 1)
        elif step == 2:  # HSV at the same hue and value: what a channel lacks to the largest grows with the saturation
            value, least = colour.amax(0), colour.amin(0)
            colour = value - (value - colour) * (value / (value - least).clamp_min(1e-8)).clamp_max(1 + shift)
        else:
            colour = TF.adjust_hue(colour, max(-0.5, min(0.5, shift)))
    return (colour * 255).round().to(image.dtype)


def _transform_one(image: Tensor, jitter: float, jitter_probability: float, blur: bool, kornia: bool) -> Tensor:
    draw = torch.rand(7).tolist()  # on the CPU: these steer which kernels run
    if draw[0] < jitter_probability and jitter > 0:
        shifts = [jitter * (2 * x - 1) for x in draw[1:5]]
        if image.is_floating_point():
            mean = image.mean((1, 2), keepdim=True)
            image = (((image - mean) * (1 + shifts[1]) + mean) * (1 + shifts[0])).clamp(0, 1)
        elif kornia:
            image = kornia_jitter(image, shifts, torch.randperm(4).tolist())
        else:
            image = TF.adjust_brightness(image, 1 + shifts[0])
            image = TF.adjust_contrast(image, 1 + shifts[1])
            image = TF.adjust_saturation(image, 1 + shifts[2])
            image = TF.adjust_hue(image, max(-0.5, min(0.5, shifts[3])))
    if blur and draw[5] < 0.5:
        sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draw[6]
        image = TF.gaussian_blur(image, [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma])
    return image


def random_patch_mask(batch: int, size: Size, block_size: int = 64, ratio: float = 0.7, device: Any = None) -> Tensor:
    """Square patches, each hidden with probability ``ratio`` (MIC, arXiv 2212.01322, Eq. 6): bool ``b 1 H W``.

    True is visible. Sizes are in pixels; patches at the bottom and right border may be cut. Raises ProtosegError: a
    ratio outside [0, 1], a block size below 1.
    """
    if not 0 <= ratio <= 1 or block_size < 1:
        wanted = "a ratio in [0, 1] and a block size of at least 1 pixel"
        raise ProtosegError(f"masking: expected {wanted}, got {ratio=}, {block_size=}")
    visible = torch.rand(batch, 1, *grid_size(size, block_size), device=device) >= ratio
    pixels = visible.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)
    return pixels[..., : size[0], : size[1]]


def mask_image(image: Tensor, visible: Tensor, mean: Tensor) -> Tensor:
    """The image with its hidden pixels in the mean colour, which the model normalises to 0 (Eq. 7).

    Of uint8, or float in [0, 1], ``b 3 H W``, ``visible`` ``b 1 H W`` and the mean ``1 3 1 1``, to [0, 1] in its dtype.
    """
    return torch.where(visible, image.to(mean.dtype) / (255 if image.dtype == torch.uint8 else 1), mean)
