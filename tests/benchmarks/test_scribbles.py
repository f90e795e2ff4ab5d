"""Strokes and dots from whole masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.scribbles import SMALLEST, VOID, WIDTH, drawn, main


def _scene() -> np.ndarray:
    """Two large regions of one class, one of another, a speck, and a void strip."""
    label = np.full((60, 200), 3, np.uint8)
    label[:, 90:100] = VOID
    label[5:55, 120:180] = 7
    label[2:4, 2:12] = 8  # 20 pixels
    return label


@pytest.mark.parametrize("points", [False, True])
def test_what_is_drawn_is_inside_its_region_and_small_regions_have_none(points: bool) -> None:
    label = _scene()
    sparse = drawn(label, points)
    kept = sparse != VOID
    assert (sparse[kept] == label[kept]).all()
    assert set(np.unique(sparse)) == {3, 7, VOID}
    assert (label == 8).sum() < SMALLEST
    count, _, boxes, _ = cv2.connectedComponentsWithStats(kept.astype(np.uint8))
    assert count - 1 == 3  # one for each region
    sides = boxes[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    # A stroke of the 60 x 50 region goes through its three pieces, 20 pixels of it between their middles at least.
    assert (sides <= WIDTH + 2).all() if points else (sides.max(1) > 20).all()


def test_the_copy_is_read_as_camvid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camvid = tmp_path / "camvid"
    for name in ("train", "trainannot", "val", "valannot"):
        (camvid / name).mkdir(parents=True)
        cv2.imwrite(str(camvid / name / "a.png"), _scene())
    left = main([str(camvid), str(tmp_path / "out")])
    sparse = cv2.imread(str(tmp_path / "out" / "trainannot" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert left == pytest.approx((sparse != VOID).sum() / (_scene() != VOID).sum())
    assert 0 < left < 0.5
    assert (cv2.imread(str(tmp_path / "out" / "valannot" / "a.png"), cv2.IMREAD_UNCHANGED) == _scene()).all()
    assert f"{left:.2%} of the labelled pixels" in capsys.readouterr().out
