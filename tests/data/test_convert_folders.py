"""Annotations of several folders become masks of the images of the same folder, of no other one of the name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoseg.data.export import convert
from protoseg.types import ProtosegError

FULL = "0 0 0 1 0 1 1 0 1"
DOG = FULL.replace("0", "1", 1)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (9, 9, 9)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def masks(out: Path) -> dict[str, int]:
    """The one value of each mask, by its name."""
    files = sorted((out / "masks").rglob("*.png"))
    found = {path.relative_to(out / "masks").as_posix(): np.unique(np.asarray(Image.open(path))) for path in files}
    return {name: int(values[0]) if len(values) == 1 else -1 for name, values in found.items()}


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    text(root / "data.yaml", "names: [cat, dog]")
    for name in ("train/1", "val/1", "val/2"):
        image(root / "images" / f"{name}.jpg")
    for name, line in (("train/1", FULL), ("train/2", FULL), ("val/1", DOG)):
        text(root / "labels" / f"{name}.txt", line)
    return root


def test_a_split_never_gets_the_shapes_of_another(yolo: Path, tmp_path: Path) -> None:
    *_, left_out = convert([yolo], tmp_path / "out")
    assert masks(tmp_path / "out") == {"train/1.png": 1, "val/1.png": 2}
    assert left_out == {"images that are missing, where another folder has one of the name": ["labels/train/2"]}


def test_of_one_folder_alone(yolo: Path, tmp_path: Path) -> None:
    convert([yolo], tmp_path / "out", images=yolo / "images" / "val")
    assert masks(tmp_path / "out") == {"1.png": 2}


def test_folders_that_one_side_alone_has_do_not_matter(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels" / "val" / "1.txt").unlink()
    (yolo / "labels" / "train").rename(yolo / "labels" / "mine")
    for each in ("train/1.jpg", "val/2.jpg"):
        (yolo / "images" / each).unlink()
    convert([yolo], tmp_path / "out")
    assert masks(tmp_path / "out") == {"val/1.png": 1}


@pytest.mark.parametrize("written", ["001.jpg", "..\\\\s1\\\\001.jpg"])
def test_labelme_names_are_of_their_own_folder(tmp_path: Path, written: str) -> None:
    for folder, label in (("s1", "cat"), ("s2", "dog")):
        shape = {"label": label, "points": [[0, 0], [8, 0], [8, 6], [0, 6]], "shape_type": "polygon"}
        content = {"imagePath": written.replace("s1", folder), "imageWidth": 8, "imageHeight": 6, "shapes": [shape]}
        text(tmp_path / "in" / folder / "001.json", json.dumps(content).replace("\\\\\\\\", "\\\\"))
        image(tmp_path / "in" / folder / "001.jpg")
    convert([tmp_path / "in"], tmp_path / "out")
    assert masks(tmp_path / "out") == {"s1/001.png": 1, "s2/001.png": 2}
    (tmp_path / "in/s1/001.jpg").unlink()
    convert([tmp_path / "in"], tmp_path / "again")
    assert masks(tmp_path / "again") == {"s2/001.png": 2}


def test_labelme_takes_the_image_beside_it_whatever_it_says(tmp_path: Path) -> None:
    """After images were moved; and what names no image is counted."""
    for name, said in (("train/1", "1.jpg"), ("val/2", "/home/x/train/2.jpg"), ("val/3", None)):
        shape = {"label": "cat", "points": [[0, 0], [8, 0], [8, 6], [0, 6]], "shape_type": "polygon"}
        content = {"imagePath": said, "imageWidth": 8, "imageHeight": 6, "shapes": [shape]}
        text(tmp_path / "in" / f"{name}.json", json.dumps(content))
        image(tmp_path / "in" / f"{name}.jpg")
    *_, left_out = convert([tmp_path / "in"], tmp_path / "out")
    assert masks(tmp_path / "out") == {"train/1.png": 1, "val/2.png": 1}
    assert {reason: len(places) for reason, places in left_out.items()} == {"images that are missing": 1}


def test_folders_within_a_split(yolo: Path, tmp_path: Path) -> None:
    for name, line in (("train/seq/2", FULL), ("val/seq/2", None), ("val/seq/3", DOG)):
        image(yolo / "images" / f"{name}.jpg")
        text(yolo / "labels" / f"{name}.txt", line) if line else None
    (yolo / "images/train/seq/2.jpg").rename(yolo / "images/train/seq/9.jpg")
    convert([yolo], tmp_path / "out")
    assert masks(tmp_path / "out") == {"train/1.png": 1, "val/1.png": 2, "val/seq/3.png": 2}


def test_coco_says_itself_which_image_it_means(tmp_path: Path) -> None:
    image(tmp_path / "in/images/train/1.jpg")
    image(tmp_path / "in/images/val/2.jpg")  # moved since
    images = [{"id": i, "file_name": f"train/{i}.jpg", "width": 8, "height": 6} for i in (1, 2)]
    shapes = [{"image_id": i, "category_id": 1, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]} for i in (1, 2)]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": shapes}
    text(tmp_path / "in/coco.json", json.dumps(content))
    convert([tmp_path / "in/coco.json"], tmp_path / "out", images=tmp_path / "in/images")
    assert masks(tmp_path / "out") == {"train/1.png": 1, "val/2.png": 1}


def test_class_masks_of_what_is_transparent_and_of_two_colours(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    pixels = np.full((6, 8, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[:2, :3, 3] = 255
    (tmp_path / "in" / "cat").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "in/cat/1.png")
    convert([tmp_path / "in"], tmp_path / "out", images=tmp_path / "images")
    assert np.asarray(Image.open(tmp_path / "out/masks/1.png")).sum() == 6

    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0], pixels[1] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "in/cat/1.png")
    with pytest.raises(ProtosegError, match="expected one value beside 0 or black, got several"):
        convert([tmp_path / "in"], tmp_path / "again", images=tmp_path / "images")
