from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from protoseg.functional.resize import grid_size, majority_label, upsample_logits
from protoseg.types import IGNORE_INDEX, ProtosegError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("size", [(32, 48), (30, 45), (33, 46)])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_a_ramp_over_cell_centres_becomes_a_ramp_over_pixel_centres(size: tuple[int, int], stride: int) -> None:
    """A linear function of the position keeps its values, away from the border, whatever the size: no stretch."""
    height, width = grid_size(size, stride)
    rows = (torch.arange(height, dtype=torch.double) + 0.5) * stride
    columns = (torch.arange(width, dtype=torch.double) + 0.5) * stride
    cells = 2.0 * rows[:, None] - 3.0 * columns[None] + 1.0
    pixels = upsample_logits(cells[None, None], size, stride)[0, 0]
    assert pixels.shape == size
    y = torch.arange(size[0], dtype=torch.double) + 0.5
    x = torch.arange(size[1], dtype=torch.double) + 0.5
    ramp = 2.0 * y[:, None] - 3.0 * x[None] + 1.0
    inside = ((y >= rows[0]) & (y <= rows[-1]))[:, None] & ((x >= columns[0]) & (x <= columns[-1]))[None]
    assert inside.sum() > 0.5 * inside.numel()
    assert_close(pixels[inside], ramp[inside])


def test_cropping_the_image_crops_the_result() -> None:
    """The pixels of a cell do not depend on how far the image reaches beyond it (straight resizing fails this)."""
    logits = torch.randn(1, 2, 5, 6, dtype=torch.double)
    whole = upsample_logits(logits, (20, 24), 4)
    for size in ((17, 21), (19, 22), (20, 23)):
        assert_close(upsample_logits(logits, size, 4), whole[..., : size[0], : size[1]], rtol=0, atol=0)


def test_grid_of_another_image_is_an_error() -> None:
    with pytest.raises(ProtosegError, match=r"expected a grid of \(5, 6\).*\(17, 21\) at stride 4, got \(4, 6\)"):
        upsample_logits(torch.zeros(1, 2, 4, 6), (17, 21), 4)


def test_majority_label_is_that_of_the_reference() -> None:
    data = np.load(GOLDEN / "downscale_label_1.npz")
    both = (torch.from_numpy(data[name]) for name in ("labels", "out"))
    label, wanted = (x.where(x != 255, IGNORE_INDEX) for x in both)
    out = majority_label(label, int(data["factor"]), float(data["min_ratio"]), int(data["num_classes"]))
    assert torch.equal(out, wanted)


def test_majority_label_by_counting() -> None:
    label = torch.tensor([[[0, 0, 1, 1, 2], [0, 3, 1, -1, 2], [-1, -1, 1, 0, 2]]])
    assert majority_label(label, 2, 0.75, 4).tolist() == [[[0, 1, 2], [-1, -1, 2]]]  # cut cells count their own pixels
    assert majority_label(label, 2, 0.8, 4).tolist() == [[[-1, -1, 2], [-1, -1, 2]]]
