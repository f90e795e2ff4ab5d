"""Regions with a wrong label are found, by prototypes and by softmax, and drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protoseg.analysis.stream import Scene, look
from protoseg.analysis.wrong_labels import MIN_PIXELS, judged_regions, region_picture, regions
from protoseg.evaluation.pictures import WRONG
from tests.analysis.toy import SPACE, Toy


def blocks() -> Tensor:
    """Road above sky; a car of 12 x 12 in the road, one of 8 x 8, and two ignored rows between."""
    label = torch.zeros(48, 64, dtype=torch.int64)
    label[24:] = 1
    label[22:24] = -1
    label[4:16, 4:16] = 2
    label[4:12, 40:48] = 2  # too small
    return label


def test_regions_are_connected_pixels_of_a_class() -> None:
    label = blocks()
    label[16:18, 16:40] = 2
    label[16, 16] = 0
    label[17, 17:19] = 0  # the strip hangs on a corner of nothing
    label[24:, 30:32] = 0  # cuts the sky
    found = [(given, box, int(mask.sum())) for given, box, mask in regions(label)]
    sky = [entry for entry in found if entry[0] == 1]
    assert sky == [(1, (0, 24, 30, 24), 720), (1, (32, 24, 32, 24), 768)]
    assert (2, (4, 4, 12, 12), 144) in found
    assert all(pixels >= MIN_PIXELS for *_, pixels in found)
    for given, (left, top, width, height), mask in regions(label):
        rows, columns = mask.nonzero()
        assert (columns.min(), rows.min()) == (left, top)
        assert (columns.max() + 1, rows.max() + 1) == (left + width, top + height)
        assert (label.numpy()[mask] == given).all()


def touching() -> Tensor:
    label = torch.full((40, 40), -1)
    label[:10, :10] = label[10:20, 10:20] = 0
    return label


def test_regions_that_touch_at_a_corner_are_one() -> None:
    assert [(given, int(mask.sum())) for given, _, mask in regions(touching())] == [(0, 200)]


def scene_of(prototypes: bool) -> tuple[Scene, Tensor]:
    """A scene of which the labels are what a model says, then one region swapped."""
    model = Toy(prototypes).eval()
    image = (blocks().clamp_min(0)[None].repeat(3, 1, 1) * 90).byte()
    said = look(model, image).prediction
    return look(model, image, said, number=7, name="a.png"), image


@pytest.mark.parametrize("prototypes", [True, False])
def test_the_swapped_region_is_the_first(prototypes: bool) -> None:
    scene, _ = scene_of(prototypes)
    right = [*judged_regions(scene)]
    assert len(right) >= 2
    assert all(region.score < 0 for region in right)
    chosen = right[-1]
    mask = [*regions(scene.label)][chosen.number][2]
    wrong = next(i for i in range(3) if i not in scene.label.unique().tolist() or i != chosen.given)
    label = scene.label.clone()
    label[torch.from_numpy(mask)] = wrong
    found = max(judged_regions(scene._replace(label=label)), key=lambda region: region.score)
    assert (found.scene, found.given, found.suggested, found.box) == (7, wrong, chosen.given, chosen.box)
    assert found.pixels == mask.sum()
    cells = scene.output.logits[0].log_softmax(0)
    if prototypes:
        cells = scene.cosines.scores.view(*scene.grid, -1).permute(2, 0, 1)
    values = scene.at_pixels(cells)[:, torch.from_numpy(mask)]
    assert found.score == pytest.approx((values[chosen.given] - values[wrong]).mean().item(), abs=1e-5)
    assert found.score > 0


def test_a_label_that_is_ignored_has_no_region() -> None:
    scene, _ = scene_of(True)
    assert [*judged_regions(scene._replace(label=torch.full_like(scene.label, -1)))] == []


def test_a_picture_shows_the_outline_around_the_region() -> None:
    scene, image = scene_of(True)
    scene = scene._replace(label=blocks())
    car = next(region for region in judged_regions(scene) if region.given == 2)
    picture = region_picture(image, scene.label, car, SPACE)
    red = (picture == WRONG).all(2)
    # A tile shows 24 pixels around, cut at the border: 40 x 40, seven times enlarged, with 12 or 13 pixels a side.
    assert 2 * 4 * 12 * 7 * 7 <= red.sum() <= 2 * 4 * 14 * 7 * 7
    assert picture.shape[1] == 8 + 2 * (280 + 8)
