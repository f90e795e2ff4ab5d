"""ADE20K and COCO-Stuff, on tiny trees in their official layouts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from protoseg.data import ADE20K, ADE20K_150, COCO_STUFF, COCOStuff
from protoseg.data.label_spaces import FILE_IGNORED
from protoseg.types import ProtosegError


def test_ade20k_reduces_the_zero_label(ade20k: Path) -> None:
    assert [(len(ADE20K(ade20k, split)), ADE20K(ade20k, split).samples[0][0].stem) for split in ADE20K.splits] == [
        (2, "ADE_train_00000001"),
        (2, "ADE_val_00000001"),
        (2, "ADE_test_00000001"),
    ]
    data = ADE20K(ade20k, "train")
    mask = cv2.imread(str(data.samples[1][1]), cv2.IMREAD_UNCHANGED).astype(int)
    assert {0, 1, 150} <= set(np.unique(mask))
    assert np.array_equal(data.read(1)[1], np.where(mask == 0, FILE_IGNORED, mask - 1))
    assert ADE20K_150.classes[0] == "wall"
    assert (ADE20K(ade20k, "test").read(0)[1] == FILE_IGNORED).all()


def test_ade20k_has_no_151st_class(ade20k: Path) -> None:
    data = ADE20K(ade20k, "val")
    cv2.imwrite(str(data.samples[0][1]), np.full((24, 32), 151, np.uint8))
    with pytest.raises(ProtosegError, match=r"ADE_val_00000001.png: expected class ids 0 to 150, 255, got 151"):
        data.read(0)


def test_coco_stuff_skips_the_unused_numbers(coco_stuff: Path) -> None:
    for split in ("train", "val"):
        data = COCOStuff(coco_stuff, split)
        assert len(data) == 2
        seen: set[int] = set()
        for index in range(2):
            label = data.read(index)[1]
            mask = cv2.imread(str(data.samples[index][1]), cv2.IMREAD_UNCHANGED)
            for value, name in ((0, "person"), (12, "stop sign"), (91, "banner"), (181, "wood")):
                assert set(label[mask == value]) <= {COCO_STUFF.classes.index(name)}
            assert (label[mask == 255] == FILE_IGNORED).all()
            seen |= set(label.ravel().tolist())
        assert len(seen) > 165
        assert max(seen - {FILE_IGNORED}) == 170


@pytest.mark.parametrize("unused", [11, 90])
def test_coco_stuff_refuses_the_unused_numbers(coco_stuff: Path, unused: int) -> None:
    data = COCOStuff(coco_stuff, "val")
    cv2.imwrite(str(data.samples[0][1]), np.full((24, 32), unused, np.uint8))
    with pytest.raises(ProtosegError, match=rf"expected class ids 0 to 10, 12 to 24, .* got {unused}: "):
        data.read(0)


def test_images_alone(ade20k: Path, coco_stuff: Path) -> None:
    for path in ade20k.rglob("annotations/*/*.png"):  # both trees are in one folder
        path.unlink()
    for kind in (ADE20K, COCOStuff):
        assert all(mask is None for _, mask in kind(ade20k, "train", labels=False).samples)
        with pytest.raises(ProtosegError, match="without mask"):
            kind(ade20k, "train")
