"""How unlike all classes a cell is: against a loop, and where no class is near."""

from __future__ import annotations

import torch

from protoseg.functional.similarity import SIDE, DenseSimilarities, unknown
from protoseg.types import SegOutput


def test_cells_of_a_taught_class_are_known() -> None:
    logits = torch.zeros(1, 3, 20, 20)
    logits[:, 2, :, :10], logits[:, 1, :, 10:] = 5, 5
    found = unknown(output(torch.full((1, 20, 20, 3, 2), 0.4), logits), [2])
    assert found[0, 0, 5, 3] == 0
    torch.testing.assert_close(found[0, 0, 5, 16], torch.tensor(0.6))


def output(cosines: torch.Tensor | None, logits: torch.Tensor) -> SegOutput:
    """Of cosines ``b h w c k``."""
    b, _, h, w = logits.shape
    known = None if cosines is None else DenseSimilarities(cosines.view(b * h * w, *cosines.shape[3:]))
    return SegOutput(logits, logits, similarities=known)


def test_it_is_the_distance_to_the_nearest_prototype_averaged_over_a_square() -> None:
    cosines = 2 * torch.rand(2, 9, 12, 3, 2, generator=torch.Generator().manual_seed(0)) - 1
    found = unknown(output(cosines, torch.zeros(2, 3, 9, 12)))
    near, half = cosines.amax((3, 4)), SIDE // 2
    assert found.shape == (2, 1, 9, 12)
    for b, y, x in [(0, 0, 0), (1, 4, 6), (0, 8, 11), (1, 2, 9)]:
        square = near[b, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        torch.testing.assert_close(found[b, 0, y, x], 1 - square.mean())


def test_without_prototypes_it_is_minus_the_largest_logit() -> None:
    logits = torch.zeros(1, 4, 20, 20)
    logits[:, 1] = 5
    logits[..., 10:] = 0.5
    found = unknown(output(None, logits))
    assert found[0, 0, 10, 2] == -5
    assert found[0, 0, 10, 17] == -0.5
    assert found.dtype == torch.float32
