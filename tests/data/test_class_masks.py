"""Images and masks of new classes: which pixels are the class, which are not, and which take no part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoseg.data.class_masks import REST, ClassMasks
from protoseg.data.label_spaces import FILE_IGNORED
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


def row(folders: tuple[Path, Path], *values: object, palette: list[int] | None = None) -> Path:
    path = folders[1] / "a" / "0.png"
    file = Image.fromarray(np.array([values], np.uint8))
    if palette:
        file.putpalette(palette)
    file.save(path)
    return path


@pytest.mark.parametrize(
    ("values", "palette", "label"),
    [
        ((0, 255, 255, 0), None, [1, 0, 0, 1]),
        ((0, 1, 255, 0), None, [1, 0, FILE_IGNORED, 1]),
        ((0, 1, 2, 255), None, [1, 0, 0, 0]),  # instances
        ((0, 1, 0, 1), [0, 255, 0, 0, 0, 0], [0, 1, 0, 1]),  # the palette begins with green
        ((0, 1, 0, 1), [0, 0, 0, 0, 255, 0], [1, 0, 1, 0]),
        (((0, 0, 0), (9, 9, 200), (0, 0, 0), (0, 0, 0)), None, [1, 0, 1, 1]),
    ],
)
def test_what_is_not_0_or_black(
    folders: tuple[Path, Path], values: tuple[object, ...], palette: list[int] | None, label: list[int]
) -> None:
    row(folders, *values, palette=palette)
    assert ClassMasks(*folders, ["car"], [RED]).read_label(0).tolist() == [label]


def test_one_bit_and_colours(folders: tuple[Path, Path]) -> None:
    Image.fromarray(np.array([[False, True, True, False]])).save(folders[1] / "a" / "0.png")
    assert ClassMasks(*folders, ["car"], [RED]).read_label(0).tolist() == [[1, 0, 0, 1]]
    path = row(folders, 0, 1, 0, 1, palette=[0, 0, 255, 0, 255, 0])
    Image.open(path).save(path, transparency=0)  # the index that is not the class, clear for the eye
    assert ClassMasks(*folders, ["car"], [RED]).read_label(0).tolist() == [[1, 0, 1, 0]]
    row(folders, BLUE, RED, (0, 0, 0), RED)
    assert ClassMasks(*folders, ["car", "dog"], [RED, BLUE], [1, 2]).read_label(0).tolist() == [[1, 0, 2, 0]]
    assert ClassMasks(*folders, ["car"], [RED]).read_label(0).tolist() == [[1, 0, 1, 0]]  # and blue is another
    assert ClassMasks(*folders, ["car"], [RED], [1]).read_label(0).tolist() == [[1, 0, 1, 0]]
    row(folders, 0, 1, 255, 7)
    assert ClassMasks(*folders, ["car"], [RED], [255]).read_label(0).tolist() == [[1, 1, 0, 1]]
    row(folders, 0, 255, 0, 255)
    assert ClassMasks(*folders, ["car"], [(255, 255, 255)], [1]).read_label(0).tolist() == [[1, 0, 1, 0]]


def test_two_sorts_of_binary_masks(folders: tuple[Path, Path]) -> None:
    path = row(folders, 0, 1, 0, 1)
    Image.new("RGB", (4, 1)).save(folders[0] / "a" / "1.jpg")
    Image.fromarray(np.array([[0, 255, 0, 255]], np.uint8)).save(path.with_name("1.png"))
    with pytest.raises(ProtosegError, match=r"got masks of 0 and 1 and masks of 0 and 255: .* give --id 1 if 255"):
        ClassMasks(*folders, ["car"], [RED])
    found = ClassMasks(*folders, ["car"], [RED], [1])
    assert [found.read_label(i).tolist() for i in range(2)] == [[[1, 0, 1, 0]], [[1, FILE_IGNORED, 1, FILE_IGNORED]]]


def test_constant_ends_of_names(folders: tuple[Path, Path]) -> None:
    path = row(folders, 0, 1, 1, 0)
    path.rename(path.with_name("0_mask.png"))
    assert ClassMasks(*folders, ["car"], [RED]).read_label(0).tolist() == [[1, 0, 0, 1]]
    row(folders, 0, 1, 1, 0).rename(path.with_name("0_other.png"))
    with pytest.raises(ProtosegError, match=r"got 2 kinds of names: keep one kind of masks in a folder of its own"):
        ClassMasks(*folders, ["car"], [RED])


def test_wrong_input(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for names, colors, ids, message in (
        (["car", "dog"], [RED], [1, 2], "expected one colour for each class, and no class twice, got 2 classes"),
        (["car", "car"], [RED, BLUE], [1, 2], "no class twice"),
        (["car", "dog"], [RED, BLUE], None, "got 2 classes .* masks without ids"),
        (["car"], [RED], [65535], "expected ids from 0 to 65534, got 65535"),
    ):
        with pytest.raises(ProtosegError, match=message):
            ClassMasks(*folders, names, colors, ids)
    with pytest.raises(ProtosegError, match="none: no such folder"):
        ClassMasks(folders[0], tmp_path / "none", ["car"], [RED])
    (folders[1] / "a" / "0.png").unlink()
    with pytest.raises(ProtosegError, match=r"1 image\(s\) without mask: a/0"):
        ClassMasks(*folders, ["car"], [RED])
