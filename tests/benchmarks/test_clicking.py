"""The simulated annotator: where it clicks, what it counts, and that its curve is drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.clicking import LITE0, RANKINGS, Annotator, Click, Photos, curve, five, largest_error, picture
from examples.labelling_page.clicks import NONE
from examples.labelling_page.evidence import blank_file
from protoseg.types import LabelSpace

SPACE = LabelSpace("patches", ("red", "blue", "green"), ((200, 40, 40), (40, 40, 200), (30, 220, 30)))


def test_the_largest_error() -> None:
    """The middle of the largest region of one true class; pixels without truth are no error."""
    truth, label = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    assert largest_error(label, truth) is None
    truth[2:5, 2:5] = 1
    truth[8:15, 10:17] = 2
    truth[8:15, 20:30] = NONE
    assert largest_error(label, truth) == Click(13, 11, 2, 49)
    assert largest_error(label, truth, [1]) == Click(3, 3, 1, 9)
    label[truth == 2] = 2
    assert largest_error(label, truth) == Click(3, 3, 1, 9)
    assert largest_error(label, truth, [2]) is None


@pytest.fixture
def annotator(tmp_path: Path) -> Annotator:
    """An untrained encoder, and three images to be clicked and one to be judged."""
    torch.manual_seed(0)
    rng, photos = np.random.default_rng(0), []
    for number in range(4):
        truth = np.zeros((64, 96), np.uint8)
        truth[:, 48:] = 1
        top, left = rng.integers(4, 28), rng.integers(4, 52)
        truth[top : top + 32, left : left + 40] = 2
        pixels = np.array(SPACE.colors)[truth] + rng.integers(-10, 10, (64, 96, 3))
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        photos.append((path, truth))
    section = {**LITE0, "pretrained": False}
    file = blank_file("lite0", section, hydra.utils.instantiate(section))
    return Annotator(Photos(SPACE, photos[:3], photos[3:]), tmp_path, file)


@pytest.mark.slow
def test_curves_and_their_picture(annotator: Annotator, tmp_path: Path) -> None:
    """Every ranking begins with a click of each class, counts clicks, and forgets those of the one before."""
    runs = {how: [curve(annotator, how, 0, 10)] for how in RANKINGS}
    assert {tuple(run[0]) for run in runs.values()} == {(3, 5, 10)}
    assert len({tuple(run[0][3]) for run in runs.values()}) == 1  # the same beginning
    for run in runs.values():
        assert all(0 <= iou <= 100 for ious in run[0].values() for iou in ious)
    assert not math.isclose(*(sum(runs[how][0][10]) for how in ("ours", "random")))
    file = tmp_path / "curve.json"
    file.write_text(json.dumps({"title": "patches", "trained": ["trained", 90.0], "runs": runs}))
    picture([file], tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").width > 300
    before, after = five(annotator, "green", 0, clicks=2)
    assert before == [0, 0, 0]  # nothing was said
    assert after[2] > 0
    annotator.session.close()
