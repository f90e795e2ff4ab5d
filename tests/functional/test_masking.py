"""Patch masks: their patches, their share, what hidden pixels become."""

from __future__ import annotations

import pytest
import torch

from protoseg.functional.mixing import mask_image, random_patch_mask
from protoseg.types import ProtosegError


def test_patches_of_a_small_image_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.tensor([[0.1, 0.7, 0.9], [0.6999, 0.0, 0.71]]).view(1, 1, 2, 3)
    monkeypatch.setattr(torch, "rand", lambda *size, device: draw.expand(size))
    expected = [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]
    mask = random_patch_mask(1, (3, 5), block_size=2, ratio=0.7)
    assert mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == expected


def test_share_of_hidden_patches_and_images_differ() -> None:
    torch.manual_seed(0)
    mask = random_patch_mask(50, (512, 512))
    assert mask.shape == (50, 1, 512, 512)
    assert float(mask.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(mask[0], mask[1])
    blocks = mask.view(50, 8, 64, 8, 64).float().mean((2, 4))
    assert ((blocks == 0) | (blocks == 1)).all(), "a patch is hidden as a whole"


def test_same_seed_same_mask() -> None:
    torch.manual_seed(3)
    mask = random_patch_mask(2, (100, 130), 16)
    torch.manual_seed(3)
    assert torch.equal(random_patch_mask(2, (100, 130), 16), mask)


@pytest.mark.parametrize(("ratio", "visible"), [(0.0, True), (1.0, False)])
def test_all_or_nothing(ratio: float, visible: bool) -> None:
    assert (random_patch_mask(1, (300, 300), 1, ratio) == visible).all()


def test_hidden_pixels_take_the_mean_colour() -> None:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    image = torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8)
    visible = torch.tensor([[True, False], [False, True]]).view(1, 1, 2, 2)
    masked = mask_image(image, visible, mean)
    assert masked.dtype == torch.float
    assert torch.equal(masked[0, :, 0, 1], mean.flatten())
    assert torch.equal(masked[0, :, 0, 0], image[0, :, 0, 0] / 255)
    assert torch.equal(mask_image(image / 255, visible, mean), masked)


@pytest.mark.parametrize(("block", "ratio"), [(64, 1.1), (64, -0.1), (0, 0.5)])
def test_wrong_settings(block: int, ratio: float) -> None:
    with pytest.raises(
        ProtosegError, match=f"ratio in .0, 1. and a block size of at least 1 pixel.*block_size={block}"
    ):
        random_patch_mask(1, (8, 8), block, ratio)
