from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from protoseg.data import CAMVID, CITYSCAPES, CamVid, Cityscapes, ImageFolder, SegmentationDataset, Streets
from protoseg.data.label_spaces import read_ids
from protoseg.types import IGNORE_INDEX, ProtosegError

CITYSCAPES_IDS = read_ids("cityscapes")


def test_camvid_reads_png_and_jpeg(camvid: Path) -> None:
    data = CamVid(camvid, "train")
    assert len(data) == 7
    assert {image.suffix for image, _ in data.samples} == {".png", ".jpg"}
    image, label, name = data[3]
    assert image.shape == (3, 24, 32)
    assert label.shape == (24, 32)
    assert name == str(data.samples[3][0])
    mask = cv2.imread(str(data.samples[3][1]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(label.numpy(), np.where(mask == 11, IGNORE_INDEX, mask.astype(int)))
    assert np.array_equal(data.read_label(3), np.where(mask == 11, 255, mask))


@pytest.mark.parametrize(
    ("sequences", "count"), [(["0001TP"], 3), (["0006R0"], 4), (["0001TP", "0006R0"], 7), (None, 7)]
)
def test_camvid_sequences(camvid: Path, sequences: list[str] | None, count: int) -> None:
    data = CamVid(camvid, "train", sequences)
    assert len(data) == count
    assert all(image.name.startswith(tuple(sequences or [""])) for image, _ in data.samples)


@pytest.mark.parametrize("sequences", [["0001TP", "0016E5"], [], [""]])
def test_camvid_sequence_without_images(camvid: Path, sequences: list[str]) -> None:
    with pytest.raises(ProtosegError, match=r"expected sequences of .*\(0001TP, 0006R0\), got '(0016E5)?'"):
        CamVid(camvid, "train", sequences)


def test_unknown_split_and_style(camvid: Path) -> None:
    with pytest.raises(ProtosegError, match="expected a split out of train, val, test, got 'validation'"):
        CamVid(camvid, "validation")
    with pytest.raises(ProtosegError, match="expected a split out of train, val, got 'test'"):
        Streets(split="test")
    with pytest.raises(ProtosegError, match="expected a style out of day, dusk, got 'night'"):
        Streets(style="night")


def test_unpaired_files(camvid: Path) -> None:
    (camvid / "trainannot" / "0001TP_000001.png").unlink()
    with pytest.raises(ProtosegError, match=r"image\(s\) without mask: 0001TP_000001"):
        CamVid(camvid, "train")
    (camvid / "train" / "0001TP_000001.jpg").unlink()
    (camvid / "train" / "0006R0_f00000.png").unlink()
    with pytest.raises(ProtosegError, match=r"mask\(s\) without image: 0006R0_f00000"):
        CamVid(camvid, "train")


def test_empty_folders(camvid: Path) -> None:
    for name in ("val", "valannot"):
        shutil.rmtree(camvid / name)
        (camvid / name).mkdir()
    with pytest.raises(ProtosegError, match=r"valannot: expected images .* got none"):
        CamVid(camvid, "val")


def test_sizes_that_differ(camvid: Path, write_mask: Callable[..., None]) -> None:
    data = CamVid(camvid, "val")
    write_mask(Path(str(data.samples[1][1])), height=24, width=31)
    with pytest.raises(ProtosegError, match=rf"32 x 24 in {data.samples[1][0]} and 31 x 24 in {data.samples[1][1]}"):
        data.read(1)


def test_cityscapes(cityscapes: Path) -> None:
    data = Cityscapes(cityscapes, "train")
    assert [image.parent.name for image, _ in data.samples] == ["aachen", "ulm"]
    _, label = data.read(0)
    mask = cv2.imread(str(data.samples[0][1]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(label, CITYSCAPES_IDS[mask])
    assert label[mask == 7].max() == 0  # road


def test_cityscapes_unpaired(cityscapes: Path) -> None:
    next((cityscapes / "gtFine/train/ulm").glob("*labelIds.png")).unlink()
    with pytest.raises(ProtosegError, match=r"without mask: ulm/ulm_000000_000019"):
        Cityscapes(cityscapes, "train")
    shutil.rmtree(cityscapes / "gtFine")
    with pytest.raises(ProtosegError, match=r"gtFine.*does not exist"):
        Cityscapes(cityscapes, "train")


def test_image_folder(tmp_path: Path, write_image: Callable[..., None]) -> None:
    write_image(tmp_path / "b.png", 10, 20)
    write_image(tmp_path / "deep/er/a.JPG", 30, 12)
    data = ImageFolder(tmp_path, CITYSCAPES)
    assert data.label_space is CITYSCAPES
    assert [label.shape for _, label, _ in data] == [(10, 20), (30, 12)]
    assert all((label == IGNORE_INDEX).all() for _, label, _ in data)
    with pytest.raises(ProtosegError, match="which has none"):
        data.read_label(0)


def test_image_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="no such file in it"):
        ImageFolder(tmp_path, CAMVID)
    with pytest.raises(ProtosegError, match="no such folder"):
        ImageFolder(tmp_path / "x", CAMVID)


@pytest.mark.parametrize(
    ("style", "split", "count"),
    [("day", "train", 200), ("day", "val", 60), ("dusk", "train", 120), ("dusk", "val", 60)],
)
def test_streets_ships_with_the_package(style: str, split: str, count: int) -> None:
    data = Streets(style=style, split=split)
    assert len(data) == count
    seen: set[int] = set()
    for index in range(0, count, 5):
        image, label = data.read(index)
        assert image.shape == (240, 320, 3)
        assert label.shape == (240, 320)
        seen |= set(np.unique(label).tolist())
    assert seen - {IGNORE_INDEX} == set(range(11))


def test_streets_licence_is_shipped() -> None:
    folder = Path(Streets().samples[0][0]).parents[3]
    assert "CC0" in (folder / "README.md").read_text()
    assert "CC0-1.0" in (folder / "LICENSE").read_text()


def test_real_camvid() -> None:
    root = Path(os.environ.get("PROTOSEG_DATA", "data")) / "camvid"
    if not root.is_dir():
        pytest.skip("CamVid is not there: set PROTOSEG_DATA to the folder that holds camvid/")
    train, val = CamVid(root, "train"), CamVid(root, "val")
    assert (len(train), len(val)) == (367, 101)
    dusk, day = CamVid(root, "train", ["0001TP"]), CamVid(root, "train", ["0006R0", "0016E5"])
    assert 0 < len(dusk) < len(train)
    assert len(dusk) + len(day) <= len(train)
    for data in (train, val):
        for index in range(0, len(data), 40):
            image, label = data.read(index)
            assert image.shape == (360, 480, 3)
            assert set(np.unique(label)) <= {*range(11), 255}


def test_a_new_data_set_is_a_few_lines(
    tmp_path: Path, write_mask: Callable[..., None], write_image: Callable[..., None]
) -> None:
    class Mine(SegmentationDataset):
        label_space = CAMVID
        id_table = Streets.id_table

    write_image(tmp_path / "i" / "a.png")
    write_mask(tmp_path / "m" / "a.png")
    assert Mine([(tmp_path / "i" / "a.png", tmp_path / "m" / "a.png")], "all")[0].image.shape == (3, 24, 32)
