"""Random patch masks of masked image consistency (MIC, Hoyer et al., arXiv 2212.01322, Sec. 3.2)."""

from typing import Any

import torch
from torch import Tensor

from protoseg.functional.resize import grid_size
from protoseg.types import ProtosegError


def random_patch_mask(
    batch: int, size: tuple[int, int], block_size: int = 64, ratio: float = 0.7, device: Any = None
) -> Tensor:
    """Square patches, each hidden with probability ``ratio`` (Eq. 6): bool ``b 1 H W``, True where visible.

    Sizes are in pixels; patches at the bottom and right border may be cut. Raises ProtosegError: a ratio outside
    [0, 1], a block size below 1.
    """
    if not 0 <= ratio <= 1 or block_size < 1:
        raise ProtosegError(
            f"image masking: expected a ratio in [0, 1] and a block size of at least 1 pixel, got ratio={ratio}, "
            f"block_size={block_size}"
        )
    visible = torch.rand(batch, 1, *grid_size(size, block_size), device=device) >= ratio
    pixels = visible.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)
    return pixels[..., : size[0], : size[1]]


def mask_image(image: Tensor, visible: Tensor, mean: Tensor) -> Tensor:
    """The image with its hidden pixels in the mean colour, which the model normalises to 0 (Eq. 7).

    Of uint8, or float in [0, 1], ``b 3 H W``, ``visible`` ``b 1 H W`` and the mean for pixels in [0, 1], ``1 3 1 1``,
    to [0, 1] in the dtype of the mean, which would be rounded as uint8.
    """
    scale = 255 if image.dtype == torch.uint8 else 1
    return torch.where(visible, image.to(mean.dtype) / scale, mean)
