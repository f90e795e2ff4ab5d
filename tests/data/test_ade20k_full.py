"""ADE20K's full annotations: a label space of more classes than a byte holds, from the files to the batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from protoseg.cli.main import run_tool
from protoseg.data import ADE20K_150, ADE20K_FULL, CAMVID, ADE20KFull, ImageFolder, SegmentationDataModule
from protoseg.data.checking import check_samples, listing_faults
from protoseg.data.export import pack
from protoseg.data.label_spaces import file_ids, mapping_table, read_ids
from protoseg.data.loading import collate
from protoseg.data.statistics import class_statistics
from protoseg.data.transforms import TrainTransform, largest_class_share
from protoseg.types import ProtosegError
from tests.data.helpers import batches
from tests.data.test_data_conf import composed

ADE20K_FULL_IDS = read_ids("ade20k_full")


def numbers(mask: Path) -> np.ndarray:
    """As https://github.com/CSAILVision/ADE20K, utils/utils_ade20k.py, reads them."""
    pixels = np.array(Image.open(mask))
    return (pixels[:, :, 0] / 10).astype(np.int32) * 256 + pixels[:, :, 1].astype(np.int32)


# Spot checks of MaskFormer's list; that 165 is a bed, also https://github.com/CSAILVision/ADE20K/issues/15.
@pytest.mark.parametrize(
    ("train_id", "number", "name"),
    [
        (0, 2978, "wall"),
        (7, 165, "bed"),
        (99, 3144, "aircraft carrier, carrier, flattop, attack aircraft carrier"),
        (255, 1857, "pier"),
        (561, 3059, "wine rack"),
        (846, 3148, "adding machine, totalizer, totaliser"),
    ],
)
def test_classes(train_id: int, number: int, name: str) -> None:
    assert ADE20K_FULL.classes[train_id] == name
    assert ADE20K_FULL_IDS[number] == train_id
    assert file_ids(ADE20K_FULL_IDS, 847)[train_id] == number


def test_table() -> None:
    assert ADE20K_FULL.num_classes == len(set(ADE20K_FULL.classes)) == len(set(ADE20K_FULL.colors)) == 847
    assert (0, 0, 0) not in ADE20K_FULL.colors
    assert ADE20K_FULL_IDS[0] == 65535
    assert sorted(ADE20K_FULL_IDS[ADE20K_FULL_IDS < 847]) == list(range(847))
    # The index of the release is in alphabetical order, but for objects that were added at its end.
    names = [ADE20K_FULL.classes[i] for i in ADE20K_FULL_IDS[:3100] if i != 65535]
    assert len(names) > 820
    assert names == sorted(names)
    # All of the benchmark's 150 classes but a few are classes here by their first names.
    missing = set(ADE20K_150.classes) - {name.split(",")[0] for name in ADE20K_FULL.classes}
    assert len(missing) <= 3, missing


def test_reads_numbers_of_red_and_green(ade20k_full: Path) -> None:
    for split, name in (("train", "ADE_train_00000002"), ("val", "ADE_val_00000002")):
        data = ADE20KFull(ade20k_full, split)
        assert [image.stem for image, _ in data.samples] == [name, name.replace("2", "1")]
        for index, (_, mask) in enumerate(data.samples):
            _, label = data.read(index)
            assert mask is not None
            assert label.dtype == np.uint16
            assert np.array_equal(label, ADE20K_FULL_IDS[numbers(mask)])
            assert [label[row, 0] for row in range(6)] == [65535, 65535, 65535, 0, 255, 846]
    assert ADE20KFull(ade20k_full, labels=False).read(0)[1].tolist() == [[65535] * 32] * 24


@pytest.mark.parametrize("num_classes", [700, 500, 300])
def test_the_most_frequent_classes(ade20k_full: Path, num_classes: int) -> None:
    make = partial(ADE20KFull, num_classes=num_classes)
    space = ADE20KFull.space(num_classes=num_classes)
    assert space.classes == ADE20K_FULL.classes[:num_classes]
    label, every = make(ade20k_full).read(0)[1], ADE20KFull(ade20k_full).read(0)[1]
    assert np.array_equal(label, np.where(every < num_classes, every, 65535))
    data = instantiate(composed("ade20k_full", f"data.dataset.num_classes={num_classes}"))
    assert data.label_space == space
    with pytest.raises(InstantiationException, match="num_classes: expected one of 847, 700, 500, 300, got 150"):
        instantiate(composed("ade20k_full", "data.dataset.num_classes=150"))


@pytest.mark.parametrize("form", ["16-bit", "grey", "beyond"])
def test_masks_that_are_wrong(ade20k_full: Path, form: str) -> None:
    data = ADE20KFull(ade20k_full)
    mask = data.samples[0][1]
    assert mask is not None
    pixels = cv2.imread(str(mask))
    pixels[0, 0] = 0, 255, 250
    wrong = {"16-bit": pixels.astype(np.uint16) * 257, "grey": pixels[..., 0], "beyond": pixels}[form]
    assert cv2.imwrite(str(mask), wrong)
    expected = {
        "grey": "in the channels of a colour PNG",
        "beyond": "ids 0 to 3688, got 6655",
        "16-bit": "0 to 3688, got",
    }
    with pytest.raises(ProtosegError, match=expected[form]):
        data.read(0)
    made, _ = listing_faults(lambda: ADE20KFull(ade20k_full))
    assert made is not None
    assert [len(checked.faults) for checked in check_samples(made)] == [1, 0]


def test_crops_keep_the_numbers(ade20k_full: Path) -> None:
    image, label = ADE20KFull(ade20k_full).read(0)
    transform = TrainTransform((40, 48), (0.5, 2), max_class_share=0.5)
    seen: set[int] = set()
    for seed in range(20):
        _, crop = transform(image, label, seed)
        assert crop.dtype == np.uint16
        seen |= set(np.unique(crop).tolist())
    assert {255, 846, 65535} < seen <= {*np.unique(label).tolist(), 65535}
    half = np.array([[255, 255, 300, 65535]], np.uint16)
    assert largest_class_share(half) == pytest.approx(2 / 3)
    assert largest_class_share(np.full((2, 2), 65535, np.uint16)) == 1


def test_batches(ade20k_full: Path, write_image: Callable[..., None]) -> None:
    data = SegmentationDataModule(ADE20KFull, 2, [40, 40], num_workers=0, root=str(ade20k_full))
    for batch in batches(data, 2):
        assert set(batch.label.unique().tolist()) <= {*range(-1, 847)}
        assert (batch.label == -1).any()
        assert (batch.label > 255).any()
    # Evaluation pads to the largest image.
    image, mask = ADE20KFull(ade20k_full, "val").samples[0]
    assert mask is not None
    write_image(image, 24, 20)
    assert cv2.imwrite(str(mask), cv2.imread(str(mask))[:, :20])
    data.val_batch_size = 2
    (batch,) = data.eval_dataloader("val")
    assert (batch.label[0, :, 20:] == -1).all()
    folder = ImageFolder(ade20k_full / "images" / "ADE" / "training", ADE20K_FULL)
    assert (collate([folder[0]]).label == -1).all()


def test_statistics(ade20k_full: Path) -> None:
    data = ADE20KFull(ade20k_full)
    found = class_statistics(data)
    for index, row in enumerate(found.counts):
        label = data.read_label(index)
        assert row.tolist() == [int((label == i).sum()) for i in range(847)]
    assert np.array_equal(class_statistics(ADE20KFull(ade20k_full)).counts, found.counts)
    assert found.path is not None
    assert class_statistics(ADE20KFull(ade20k_full, num_classes=300)).counts.shape == (2, 300)


def test_no_mapping(ade20k_full: Path) -> None:
    for pair in ((ADE20K_FULL, CAMVID), (CAMVID, ADE20K_FULL), (ADE20K_FULL, ADE20K_FULL)):
        with pytest.raises(
            ProtosegError, match="mapping: expected label spaces of at most 253 classes, got 'ade20k_full'"
        ):
            mapping_table(*pair, None)


def test_packed_copy(ade20k_full: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("packed")
    pack([ADE20KFull(ade20k_full, split) for split in ADE20KFull.splits], ade20k_full, copy)
    assert np.array_equal(ADE20KFull(copy).read(0)[1], ADE20KFull(ade20k_full).read(0)[1])


@pytest.mark.slow
def test_tools_show_what_fits_on_a_screen(ade20k_full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = f"data.root={ade20k_full}", str(ade20k_full / "out")
    run_tool("data", ["stats", "ade20k_full", root])
    shown = capsys.readouterr().out
    assert "807 more" in shown
    assert len(shown.splitlines()) < 150
    run_tool("data", ["info", "ade20k_full", root, "--out", out])
    shown = capsys.readouterr().out
    assert "847 classes of the label space 'ade20k_full'" in shown
    assert "807 more" in shown
    run_tool("data", ["show", "ade20k_full", root, "--count", "2", "--out", out])
    sheets = [Image.open(ade20k_full / "out" / f"ade20k_full_{split}.jpg") for split in ("train", "val")]
    assert all(max(sheet.size) < 10000 for sheet in sheets)
    run_tool("data", ["check", "ade20k_full", root])
    assert "no faults" in capsys.readouterr().out
