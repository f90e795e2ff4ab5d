"""Images and masks of new classes: which pixels are the class, which are not, and which take no part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoseg.data.class_masks import REST, ClassMasks
from protoseg.data.label_spaces.tables import FILE_IGNORED
from protoseg.types import ProtosegError

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        (folder / "a").mkdir(parents=True)
    Image.new("RGB", (4, 1)).save(images / "a" / "0.jpg")
    Image.fromarray(np.array([[0, 1, 26, 255]], np.uint8)).save(masks / "a" / "0.png")
    return images, masks


def test_binary_masks(folders: tuple[Path, Path]) -> None:
    data = ClassMasks(*folders, ["car"], [RED])
    assert data.label_space.classes == ("car", REST)
    assert data.label_space.colors[0] == RED
    assert data.read(0)[1].tolist() == [[1, 0, 0, 0]]


def test_masks_of_ids(folders: tuple[Path, Path]) -> None:
    data = ClassMasks(*folders, ["car", "dog"], [RED, BLUE], [26, 0])
    assert data.read(0)[1].tolist() == [[1, 2, 0, FILE_IGNORED]]


def test_wrong_input(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for names, colors, ids, message in (
        (["car", "dog"], [RED], [1, 2], "expected one colour for each class, and no class twice, got 2 classes"),
        (["car", "car"], [RED, BLUE], [1, 2], "no class twice"),
        (["car", "dog"], [RED, BLUE], None, "got 2 classes .* masks without ids"),
        (["car"], [RED], [255], "expected ids from 0 to 254, got 255"),
    ):
        with pytest.raises(ProtosegError, match=message):
            ClassMasks(*folders, names, colors, ids)
    with pytest.raises(ProtosegError, match="none: no such folder"):
        ClassMasks(folders[0], tmp_path / "none", ["car"], [RED])
    (folders[1] / "a" / "0.png").unlink()
    with pytest.raises(ProtosegError, match=r"1 image\(s\) without mask: a/0"):
        ClassMasks(*folders, ["car"], [RED])
