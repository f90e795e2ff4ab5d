"""The data sets of the Cityscapes family, on tiny trees in their official layouts."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.data import (
    ACDC,
    CITYSCAPES,
    GTA5,
    CamVid,
    Cityscapes,
    DarkZurich,
    SegmentationDataModule,
    SegmentationDataset,
    Streets,
    Synthia,
)
from protoseg.data.label_spaces import FILE_IGNORED, read_ids
from protoseg.types import ProtosegError

CITYSCAPES_IDS = read_ids("cityscapes")
SYNTHIA_IDS = read_ids("cityscapes", "synthia")


def test_gta5_reads_palette_masks_and_leaves_out_the_invalid(gta5: Path) -> None:
    data = GTA5(gta5)
    assert [image.stem for image, _ in data.samples] == ["00001", "00002"]
    _, label = data.read(1)
    ids = np.asarray(Image.open(str(data.samples[1][1])))
    assert ids.max() == 34
    assert np.array_equal(label, np.where(ids == 34, FILE_IGNORED, CITYSCAPES_IDS[np.minimum(ids, 33)]))


def test_synthia_reads_the_first_of_16_bit_channels(synthia: Path) -> None:
    data = Synthia(synthia)
    assert len(data) == 2
    for index in range(2):
        mask = cv2.imread(str(data.samples[index][1]), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint16
        assert np.array_equal(data.read(index)[1], SYNTHIA_IDS[mask[..., 2]])
    assert data.label_space is CITYSCAPES


@pytest.mark.parametrize("kind", [GTA5, Synthia])
def test_synthetic_data_has_one_split(kind: type[SegmentationDataset], tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="expected a split out of train, got 'val'"):
        kind(tmp_path, split="val")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("conditions", "found"), [(None, ["fog", "night", "rain", "snow"]), (["snow", "fog"], ["snow", "fog"])]
)
def test_acdc(acdc: Path, conditions: list[str] | None, found: list[str]) -> None:
    for split in ("train", "val"):
        data = ACDC(acdc, split, conditions=conditions)
        assert [image.parts[-4] for image, _ in data.samples] == found
        for index in range(len(data)):
            mask = cv2.imread(str(data.samples[index][1]), cv2.IMREAD_UNCHANGED)
            assert str(data.samples[index][1]).endswith("_gt_labelTrainIds.png")
            assert np.array_equal(data.read(index)[1], mask)
    assert (ACDC(acdc, "test").read(0)[1] == FILE_IGNORED).all()


@pytest.mark.parametrize("conditions", [["mist"], []])
def test_acdc_condition_that_is_none(acdc: Path, conditions: list[str]) -> None:
    with pytest.raises(ProtosegError, match=r"expected conditions out of fog, night, rain, snow, got (mist|none)"):
        ACDC(acdc, "train", conditions=conditions)


def test_acdc_unpaired(acdc: Path) -> None:
    next((acdc / "gt/rain/train").rglob("*TrainIds.png")).unlink()
    with pytest.raises(ProtosegError, match="without mask: GOPR0475/GOPR0475_frame_000002"):
        ACDC(acdc, "train")


def test_dark_zurich(dark_zurich: Path) -> None:
    night = DarkZurich(dark_zurich, "train")
    assert [image.name for image, _ in night.samples] == ["A_1_rgb_anon.png", "B_1_rgb_anon.png"]
    assert all(mask is None for _, mask in night.samples)
    assert len(DarkZurich(dark_zurich, "train", time="day")) == 1
    val = DarkZurich(dark_zurich, "val")
    mask = cv2.imread(str(val.samples[0][1]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(val.read(0)[1], mask)
    with pytest.raises(ProtosegError, match="expected a time out of night, twilight, day, got 'noon'"):
        DarkZurich(dark_zurich, time="noon")


def loads_without_masks(kind: partial[SegmentationDataset] | type[SegmentationDataset], root: Path, masks: str) -> None:
    for path in root.rglob("*.png"):
        if path.relative_to(root).parts[0] in masks.split():
            path.write_bytes(b"unreadable")
    module = SegmentationDataModule(kind, batch_size=1, crop_size=[8, 8], root=str(root), labels=False)
    data = module.train_dataset()
    assert len(data) > 0
    assert all((label == -1).all() for _, label, _ in data)
    for folder in masks.split():
        shutil.rmtree(root / folder, ignore_errors=True)
    again = SegmentationDataModule(kind, batch_size=1, crop_size=[8, 8], root=str(root), labels=False)
    assert [image for image, _ in again.train_dataset().samples] == [image for image, _ in data.samples]
    with pytest.raises(ProtosegError):
        module.dataset("train").read(0)  # with labels, it reads them


def test_gta5_images_alone(gta5: Path) -> None:
    loads_without_masks(GTA5, gta5, "labels")


def test_synthia_images_alone(synthia: Path) -> None:
    loads_without_masks(Synthia, synthia, "GT")


def test_acdc_images_alone(acdc: Path) -> None:
    loads_without_masks(partial(ACDC, conditions=["night"]), acdc, "gt")


def test_cityscapes_images_alone(cityscapes: Path) -> None:
    loads_without_masks(Cityscapes, cityscapes, "gtFine")


def test_camvid_images_alone(camvid: Path) -> None:
    loads_without_masks(partial(CamVid, sequences=["0001TP"]), camvid, "trainannot")


def test_streets_images_alone(tmp_path: Path) -> None:
    shutil.copytree(Path(Streets().samples[0][0]).parents[1], tmp_path / "day" / "train")
    shutil.rmtree(tmp_path / "day" / "train" / "labels")
    assert all(mask is None for _, mask in Streets(tmp_path, labels=False).samples)


def test_dark_zurich_trains_without_masks_only(dark_zurich: Path) -> None:
    options = {"batch_size": 1, "crop_size": [8, 8], "root": str(dark_zurich)}
    assert len(SegmentationDataModule(DarkZurich, labels=False, **options).train_dataset()) == 2
    with pytest.raises(ProtosegError, match=r"images with masks to train on, got .*A_1_rgb_anon.png.*target of domain"):
        SegmentationDataModule(DarkZurich, **options).train_dataset()


def test_a_data_set_without_the_argument_has_its_masks_left_unopened(camvid: Path) -> None:
    class Mine(SegmentationDataset):
        label_space = CamVid.label_space
        id_table = CamVid.id_table

        def __init__(self, root: Path, split: str) -> None:
            images = sorted((Path(root) / split).glob("*.png"))
            super().__init__([(image, Path(root) / f"{split}annot" / image.name) for image in images], split)

    loads = SegmentationDataModule(Mine, batch_size=1, crop_size=[8, 8], root=str(camvid), labels=False)
    for mask in (camvid / "trainannot").glob("*.png"):
        mask.write_bytes(b"unreadable")
    assert all((label == -1).all() for _, label, _ in loads.train_dataset())


def test_folder_without_images(camvid: Path) -> None:
    shutil.rmtree(camvid / "train")
    (camvid / "train").mkdir()
    data = SegmentationDataModule(CamVid, batch_size=1, crop_size=[8, 8], root=str(camvid), labels=False)
    with pytest.raises(ProtosegError, match=r"train: expected images \([^)]*\), got none"):
        data.setup("fit")
