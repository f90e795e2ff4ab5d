"""One's own folder: masks of ids and of colours, and the three kinds of splits."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoseg.data import LabelledFolder, SegmentationDataModule, read_class_file
from protoseg.data.label_spaces import FILE_IGNORED
from protoseg.types import ProtosegError

COLORS = {(128, 64, 128): 0, (0, 0, 142): 1, (10, 200, 30): 2, (0, 0, 0): FILE_IGNORED}
IDS = {7: 0, 26: 1, 21: 2, 0: FILE_IGNORED}


def load(root: Path, split: str = "train", **options: Any) -> LabelledFolder:
    return LabelledFolder(root, root / "classes.yaml", split, **options)


def names(data: LabelledFolder) -> list[str]:
    return [image.stem for image, _ in data.samples]


def test_masks_of_ids_and_of_colours(folder: Path) -> None:
    for data in (load(folder), load(folder, "val")):
        for index, (image, mask) in enumerate(data.samples):
            pixels = np.asarray(Image.open(str(mask)))
            label = data.read(index)[1]
            of_colors = int(image.stem[-1]) % 2 == 1
            assert pixels.ndim == (3 if of_colors else 2)
            for row, column in np.ndindex(label.shape):
                value = pixels[row, column]
                assert label[row, column] == (COLORS[tuple(value.tolist())] if of_colors else IDS[int(value)])


def test_opaque_masks(folder: Path) -> None:
    data = load(folder)
    colored = next(i for i, name in enumerate(names(data)) if int(name[-1]) % 2)
    expected, path = data.read(colored)[1], str(data.samples[colored][1])
    Image.open(path).convert("RGBA").save(path)
    assert np.array_equal(data.read(colored)[1], expected)


def test_colours_that_no_class_has(folder: Path) -> None:
    data = load(folder)
    colored = next(i for i, name in enumerate(names(data)) if int(name[-1]) % 2)
    path = str(data.samples[colored][1])
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:2, :3] = 1, 2, 3
    Image.fromarray(pixels).save(path)
    with pytest.raises(
        ProtosegError, match=r"got 1 other\(s\) on 6 pixels: \(1, 2, 3\): add them to the file of classes"
    ):
        data.read(colored)


def test_colours_of_16_bits_are_refused(folder: Path, tmp_path: Path) -> None:
    import cv2

    data = load(folder)
    cv2.imwrite(str(data.samples[0][1]), np.zeros((24, 32, 3), np.uint16))  # read as 8 bits, all of it would be void
    with pytest.raises(ProtosegError, match=r"or RGB colours of 8 bits, got RGB of other bits"):
        data.read(0)


def test_drawn_split(folder: Path, write_image: Callable[..., None], write_mask: Callable[..., None]) -> None:
    train, val = names(load(folder)), names(load(folder, "val"))
    assert (len(train), len(val)) == (4, 1)
    assert not set(train) & set(val)
    assert names(load(folder, "val")) == val
    assert len(names(load(folder, "val", val_share=0.6))) == 3
    assert {tuple(names(load(folder, "val", split_seed=seed))) for seed in range(20)} > {tuple(val)}
    assert names(load(folder, labels=False)) == train
    with pytest.raises(
        ProtosegError, match=r"expected split train or val and at least 2 images.*got 'test' and 5 images"
    ):
        load(folder, "test")
    with pytest.raises(
        ProtosegError, match=r"got 'train' and 5 images, 5 of them val: .*, or another data\.dataset\.val_share"
    ):
        load(folder, "train", val_share=1.0)


def test_drawn_split_moves_little_when_images_are_added(folder: Path, write_image: Callable[..., None]) -> None:
    for i in range(95):
        write_image(folder / "images" / f"more {i}.png", 4, 4)
        shutil.copy(folder / "masks" / "photo 0.png", folder / "masks" / f"more {i}.png")
    before = set(names(load(folder, "val")))
    assert len(before) == 20
    write_image(folder / "images" / "new.png", 4, 4)
    shutil.copy(folder / "masks" / "photo 0.png", folder / "masks" / "new.png")
    assert len(before & set(names(load(folder, "val")))) >= 19


def split_into_folders(root: Path, **splits: list[int]) -> None:
    for split, numbers in splits.items():
        for kind in ("images", "masks"):
            (root / kind / split / "deeper").mkdir(parents=True)
            for number in numbers:
                path = next((root / kind).glob(f"photo {number}.*"))
                path.rename(root / kind / split / "deeper" / path.name)


def test_split_by_subfolders(folder: Path) -> None:
    split_into_folders(folder, train=[0, 1, 2], val=[3, 4])
    assert names(load(folder)) == ["photo 0", "photo 1", "photo 2"]
    assert names(load(folder, "val")) == ["photo 3", "photo 4"]
    with pytest.raises(ProtosegError, match=r"images: expected a folder of split 'test', got train, val: add it"):
        load(folder, "test")
    shutil.rmtree(folder / "masks/val")
    with pytest.raises(ProtosegError, match=r"masks/val, which does not exist"):
        load(folder, "val")
    assert len(load(folder, "val", labels=False)) == 2


def test_images_beside_subfolders(folder: Path) -> None:
    split_into_folders(folder, train=[0, 1, 2], val=[3])
    with pytest.raises(ProtosegError, match="got the subfolder train and images beside it"):
        load(folder)


def test_split_by_lists(folder: Path) -> None:
    (folder / "train.txt").write_text("photo 3\n\nphoto 0.png\n  photo 1.jpg\r\n", encoding="utf-8-sig")
    (folder / "val.txt").write_text("photo 2\n")
    assert names(load(folder)) == ["photo 0", "photo 1", "photo 3"]
    assert names(load(folder, "val")) == ["photo 2"]
    with pytest.raises(ProtosegError, match=r"list of the images of split 'test', got only train.txt, val.txt"):
        load(folder, "test")
    (folder / "masks" / "photo 2.png").unlink()
    with pytest.raises(ProtosegError, match=r"1 image.s. without mask: photo 2"):
        load(folder, "val")


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ("photo 4\nphoto 4.png", r"val.txt, line 2: expected every image once, got 'photo 4', as in .*val.txt, line 1"),
        ("photo 0", r"val.txt, line 1: expected every image once, got 'photo 0', as in .*train.txt, line 1"),
        ("photo 4\nphoto 9.png", r"val.txt, line 2: expected the name of an image in .*images, got 'photo 9.png'"),
        (
            "/elsewhere/photo 4.png",
            r"val.txt, line 1: expected the name of an image in .*images, got '/elsewhere/photo",
        ),
        (".", r"val.txt, line 1: expected the name of an image in .*images, got '.'"),
        (b"\xff\xfe\xff", r"val.txt: expected the list of a split's images, a text file in UTF-8"),
    ],
)
def test_bad_lists(folder: Path, val: str | bytes, message: str) -> None:
    (folder / "train.txt").write_text("photo 0")
    (folder / "val.txt").write_bytes(val.encode() if isinstance(val, str) else val)
    with pytest.raises(ProtosegError, match=message):
        load(folder)


def test_lists_of_absolute_paths(folder: Path) -> None:
    (folder / "train.txt").write_text(f"{(folder / 'images' / 'photo 0.png').absolute()}\n/elsewhere/photo 1")
    with pytest.raises(ProtosegError, match=r"train.txt, line 2: expected the name of an image"):
        load(folder)
    (folder / "train.txt").write_text(f"{(folder / 'images' / 'photo 0.png').absolute()}")
    assert names(load(folder)) == ["photo 0"]


def test_lists_and_subfolders_at_once(folder: Path) -> None:
    split_into_folders(folder, train=[0, 1, 2], val=[3, 4])
    (folder / "val.txt").write_text("photo 3")
    with pytest.raises(ProtosegError, match=r"got the subfolder train and .*val.txt: keep one"):
        load(folder)


def test_lists_with_accents(folder: Path) -> None:
    for path in [*folder.glob("images/photo 0.*"), *folder.glob("masks/photo 0.*")]:
        path.rename(path.with_name(unicodedata.normalize("NFD", f"café{path.suffix}")))
    (folder / "train.txt").write_text(unicodedata.normalize("NFC", "café"), encoding="utf-8")
    assert len(load(folder)) == 1


def test_labels_folder_and_both(folder: Path) -> None:
    (folder / "masks").rename(folder / "labels")
    assert len(load(folder)) == 4
    shutil.copytree(folder / "labels", folder / "masks")
    with pytest.raises(ProtosegError, match=r"got labels, masks: set data\.dataset\.masks=labels or data\.d.*=masks"):
        load(folder)


def test_missing_folders(folder: Path) -> None:
    shutil.rmtree(folder / "masks")
    assert len(load(folder, labels=False)) == 5  # without masks, nothing to draw a split for
    with pytest.raises(
        ProtosegError, match=r"expected one folder of masks \(masks, .*\), got images: set data\.dataset\.masks=NAME"
    ):
        load(folder)
    shutil.rmtree(folder / "images")
    with pytest.raises(ProtosegError, match=r"expected one folder of images \(images, .*\), got no folder"):
        load(folder)


def test_datamodule_knows_the_classes(folder: Path) -> None:
    dataset = partial(LabelledFolder, classes=folder / "classes.yaml")
    data = SegmentationDataModule(dataset, batch_size=1, crop_size=[8, 8], root=str(folder))
    assert data.label_space == read_class_file(folder / "classes.yaml").label_space
    assert data.class_frequencies().sum() == pytest.approx(1)


def test_statistics_are_counted_again_for_other_colours(folder: Path) -> None:
    def counted() -> np.ndarray:
        dataset = partial(LabelledFolder, classes=folder / "classes.yaml")
        data = SegmentationDataModule(dataset, batch_size=1, crop_size=[8, 8], root=str(folder))
        return data.class_statistics().pixels

    before = counted()
    text = (folder / "classes.yaml").read_text(encoding="utf-8")
    swapped = (
        text.replace("[128, 64, 128]", "[9]").replace("[0, 0, 142]", "[128, 64, 128]").replace("[9]", "[0, 0, 142]")
    )
    (folder / "classes.yaml").write_text(swapped, encoding="utf-8")
    assert not np.array_equal(counted(), before)
