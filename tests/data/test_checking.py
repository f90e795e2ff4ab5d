"""A tree with faults of many kinds: each is found, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.data import CamVid
from protoseg.data.checking import check_sample, check_samples, listing_faults, repeated_images
from protoseg.data.pairing import collect_faults, fault
from protoseg.types import ProtosegError

NAMES = [f"0001TP_{i:06d}" for i in range(80)]


def _cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _text(path: Path) -> None:
    path.write_text("<html>404</html>")


def _other_size(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((24, 30), np.uint8))


def _unknown_id(path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[3, 4] = 77
    cv2.imwrite(str(path), mask)


def _colours(path: Path) -> None:
    Image.new("RGB", (32, 24), (128, 64, 128)).save(path)


def _16_bit(path: Path) -> None:
    cv2.imwrite(str(path), np.full((24, 32), 7000, np.uint16))


def _jpeg(path: Path) -> None:
    Image.new("L", (32, 24)).save(path.with_suffix(".jpg"))
    path.unlink()


def _broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def _twin(path: Path) -> None:
    Image.new("RGB", (32, 24)).save(path.with_suffix(".jpg"))


def _again(path: Path) -> None:
    """The same image under another name, with a mask of its own."""
    link = path.with_name("0006R0_again.png")
    link.symlink_to(path.name)
    mask = path.parents[1] / "trainannot" / path.name
    link.parents[1].joinpath("trainannot", link.name).write_bytes(mask.read_bytes())


PLANTED: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("train", NAMES[0], _cut, r"image \S*{name}.png: expected a complete image"),
    ("train", NAMES[9], _text, r"image \S*{name}.png: expected a complete image"),
    ("trainannot", NAMES[18], _cut, r"mask \S*{name}.png: expected a complete image"),
    ("trainannot", NAMES[27], _other_size, r"one size, got 32 x 24 in \S*{name}.png and 30 x 24"),
    ("trainannot", NAMES[36], _unknown_id, r"mask \S*{name}.png: expected class ids 0 to 11, 255, got 77"),
    ("trainannot", NAMES[45], _colours, r"mask \S*{name}.png: expected one channel of class ids .* got RGB"),
    ("trainannot", NAMES[50], _16_bit, r"mask \S*{name}.png: expected class ids .*, got 7000"),
    ("trainannot", NAMES[55], _jpeg, r"{name}"),
    ("trainannot", NAMES[60], Path.unlink, r"got image without mask: {name}"),
    ("train", NAMES[63], Path.unlink, r"got mask without image: {name}"),
    ("train", NAMES[66], _twin, r"expected one file per name, got \S*{name}.jpg and \S*{name}.png"),
    ("train", NAMES[69], _broken_link, r"image \S*{name}.png: expected a file, got none"),
    ("train", NAMES[72], _again, r"the same file in train \(\S*{name}.png\) and train \(\S*0006R0_again.png\)"),
]


@pytest.fixture
def tree(tmp_path: Path, write_image: Callable[..., None], write_mask: Callable[..., None]) -> Path:
    for i, name in enumerate(NAMES):
        write_image(tmp_path / "train" / f"{name}.png", seed=i)
        write_mask(tmp_path / "trainannot" / f"{name}.png", seed=i)
    return tmp_path


def faults(root: Path) -> list[str]:
    data, found = listing_faults(lambda: CamVid(root, "train"))
    assert data is not None
    rows = list(check_samples(data))
    assert len(rows) == len(data)
    return [*found, *repeated_images({"train": data}), *(message for row in rows for message in row.faults)]


def test_a_sound_tree_has_none(tree: Path) -> None:
    assert faults(tree) == []


def test_every_planted_fault_is_found_and_no_other(tree: Path) -> None:
    for folder, name, plant, _ in PLANTED:
        plant(tree / folder / f"{name}.png")
    found = faults(tree)
    for _, name, _, message in PLANTED:
        about = [text for text in found if name in text]
        assert len(about) == 1, (name, about)
        assert re.search(message.replace("{name}", name), about[0])
    assert len(found) == len(PLANTED)


def test_a_bad_image_and_its_bad_mask_are_two(tree: Path) -> None:
    for folder in ("train", "trainannot"):
        _cut(tree / folder / f"{NAMES[0]}.png")
    image, mask = check_sample(CamVid(tree, "train"), 0).faults
    assert image.startswith("image ")
    assert mask.startswith("mask ")


def test_unlabelled_images_are_checked_alone(tree: Path) -> None:
    data = CamVid(tree, "train", labels=False)
    _text(tree / "trainannot" / f"{NAMES[0]}.png")
    assert check_sample(data, 0).faults == []


def test_nothing_to_read(tmp_path: Path) -> None:
    data, found = listing_faults(lambda: CamVid(tmp_path, "train"))
    assert data is None
    assert len(found) == 1
    assert "which does not exist" in found[0]


def test_one_image_in_two_splits(tree: Path) -> None:
    (tree / "val").symlink_to("train")
    (tree / "valannot").symlink_to("trainannot")
    found = repeated_images({split: CamVid(tree, split) for split in ("train", "val")})
    assert len(found) == len(NAMES)
    assert "the same file in train (" in found[0]
    assert " and val (" in found[0]


def test_faults_raise_unless_they_are_collected() -> None:
    with pytest.raises(ProtosegError, match="all of them"):
        fault("all of them", ["one", "two"])
    with collect_faults() as found:
        fault("all of them", ["one", "two"])
        fault("three")
    assert found == ["one", "two", "three"]
    with pytest.raises(ProtosegError):
        fault("four")
