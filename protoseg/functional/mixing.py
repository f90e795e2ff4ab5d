"""ClassMix and the strong augmentation of mixed images, on whatever device the images are."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from protoseg.types import IGNORE_INDEX

BLUR_KERNEL = 9  # covers four standard deviations of the widest blur
BLUR_SIGMA = (0.15, 1.15)


def class_mix_mask(label: Tensor, num_classes: int) -> Tensor:
    """Pixels of half of the classes of each image (rounded up), chosen at random: bool ``b H W``.

    ClassMix (Olsson et al., arXiv 2007.07936). The released DACS code takes the ignored label for a class that may be
    pasted; here it never is.

    Args:
        label: int64 ``b H W``, ``IGNORE_INDEX`` where unlabelled.
        num_classes: number of classes.
    """
    b = len(label)
    ids = label.where(label != IGNORE_INDEX, num_classes).flatten(1)
    present = torch.zeros(b, num_classes + 1, dtype=torch.bool, device=label.device).scatter_(1, ids, True)
    present[:, num_classes] = False
    # A random rank among the classes present: absent ones come last.
    key = torch.rand(b, num_classes + 1, device=label.device).where(present, 2.0)
    rank = key.argsort(1).argsort(1)
    chosen = present & (rank < (present.sum(1, keepdim=True) + 1) // 2)
    return chosen.gather(1, ids).view_as(label)


def paste(pasted: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """``source`` where ``pasted`` (bool ``b H W``), else ``target``; both ``b H W`` or ``b c H W``."""
    mask = pasted if source.ndim == pasted.ndim else pasted.unsqueeze(1)
    return source.where(mask, target)


def strong_transform(image: Tensor, jitter: float = 0.2, jitter_probability: float = 0.8, blur: bool = True) -> Tensor:
    """Colour jitter and Gaussian blur, drawn anew for every image: uint8 ``b 3 H W`` to the same.

    The strengths of DACS and DAFormer: brightness, contrast, saturation and hue by up to ``jitter``, in four of five
    images; a blur of sigma 0.15 to 1.15 in every second one.
    """
    return torch.stack([_transform_one(one, jitter, jitter_probability, blur) for one in image])


def _transform_one(image: Tensor, jitter: float, jitter_probability: float, blur: bool) -> Tensor:
    draw = torch.rand(7).tolist()  # on the CPU: these steer which kernels run
    if draw[0] < jitter_probability and jitter > 0:
        brightness, contrast, saturation, hue = (jitter * (2 * x - 1) for x in draw[1:5])
        image = TF.adjust_brightness(image, 1 + brightness)
        image = TF.adjust_contrast(image, 1 + contrast)
        image = TF.adjust_saturation(image, 1 + saturation)
        image = TF.adjust_hue(image, max(-0.5, min(0.5, hue)))
    if blur and draw[5] < 0.5:
        sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draw[6]
        image = TF.gaussian_blur(image, [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma])
    return image
