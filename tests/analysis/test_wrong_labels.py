"""Regions with a wrong label are found, by prototypes and by softmax, and drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.analysis.stream import Scene
from protoseg.analysis.wrong_labels import MIN_PIXELS, judged_regions, region_picture, regions
from protoseg.evaluation.pictures import WRONG
from protoseg.types import SegOutput
from tests.analysis.toy import SPACE


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


def scene_of(prototypes: bool) -> Scene:
    """A scene of blocks of 16 x 16, each surely of one class, of which the label is what the model says."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (3, 4), generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)
    cells = 0.5 * F.one_hot(classes, 3).movedim(2, 0) + 0.1 * torch.rand(3, 12, 16, generator=generator)
    cosines: Any = SimpleNamespace(scores=cells.flatten(1).T) if prototypes else None
    logits = cells.flip(1) if prototypes else cells  # not what is read where there are prototypes
    output = SegOutput(logits=logits[None], embeddings=logits[None], similarities=cosines)
    scene = Scene(7, "a.png", torch.zeros(3, 48, 64, dtype=torch.uint8), blocks(), output, 4)
    return scene._replace(label=scene.at_pixels(cells).argmax(0))


@pytest.mark.parametrize("prototypes", [True, False])
def test_the_swapped_region_is_the_first(prototypes: bool) -> None:
    scene = scene_of(prototypes)
    right = [*judged_regions(scene, 3)]
    assert len(right) >= 4
    assert all(region.score < 0 for region in right)
    for chosen in right:
        mask = torch.from_numpy([*regions(scene.label)][chosen.number][2])
        wrong = (chosen.given + 1) % 3
        label = torch.where(mask, wrong, -1)
        (found,) = judged_regions(scene._replace(label=label), 3)
        assert found[:6] == (7, 0, wrong, chosen.given, int(mask.sum()), found.score)
        assert found.box == chosen.box
        cells = scene.cosines.scores.T.view(3, *scene.grid) if prototypes else scene.output.logits[0].log_softmax(0)
        said = scene.at_pixels(cells)[:, mask]
        assert found.score == pytest.approx((said[chosen.given] - said[wrong]).mean().item(), abs=1e-5)
        assert found.score > 0.1


def test_a_label_that_is_ignored_has_no_region() -> None:
    scene = scene_of(True)
    assert [*judged_regions(scene._replace(label=torch.full_like(scene.label, -1)), 3)] == []


def test_a_picture_shows_the_outline_around_the_region() -> None:
    scene = scene_of(True)._replace(label=blocks())
    car = next(region for region in judged_regions(scene, 3) if region.given == 2)
    picture = region_picture(scene.image, scene.label, car, SPACE)
    red = (picture == WRONG).all(2)
    # A tile shows 24 pixels around, cut at the border: 40 x 40, seven times enlarged, with 12 or 13 pixels a side.
    assert 2 * 4 * 12 * 7 * 7 <= red.sum() <= 2 * 4 * 14 * 7 * 7
    assert picture.shape[1] == 8 + 2 * (280 + 8)


@pytest.mark.parametrize("prototypes", [True, False])
def test_a_group_is_no_other_class(prototypes: bool) -> None:
    """The third node is the group of the others: where it is said, or labelled, nothing is wrong."""
    scene = scene_of(prototypes)
    assert 2 in {region.suggested for region in judged_regions(scene, 3)}
    found = [*judged_regions(scene, 2)]
    assert found
    assert all({region.given, region.suggested} == {0, 1} for region in found)
    whole = [*judged_regions(scene, 3)]
    of_classes = [region for region in whole if region.given < 2]
    assert [region[:2] for region in found] == [region[:2] for region in of_classes]  # numbered as they are all
