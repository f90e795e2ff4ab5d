"""Tiny data sets in their true formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.data.label_spaces import WIDE_FILE_IGNORED, read_ids

ADE20K_FULL_IDS = read_ids("ade20k_full")

Write = Callable[..., None]


def _write_image(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), noise)


def _write_mask(path: Path, height: int = 24, width: int = 32, seed: int = 0, ids: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.random.default_rng(seed).integers(0, ids, (height, width), dtype=np.uint8)
    assert cv2.imwrite(str(path), mask)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Statistics files that cannot lie beside the data land here."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def write_image() -> Write:
    return _write_image


@pytest.fixture
def write_mask() -> Write:
    return _write_mask


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """CamVid in SegNet's form: 7 train, 3 val and 1 test image, by day (PNG) and at dusk (JPEG)."""
    for split, count in (("train", 7), ("val", 3), ("test", 1)):
        for i in range(count):
            name = f"0001TP_{i:06d}" if i % 2 else f"0006R0_f{i:05d}"
            _write_image(tmp_path / split / f"{name}{'.jpg' if i % 2 else '.png'}", seed=i)
            _write_mask(tmp_path / f"{split}annot" / f"{name}.png", seed=i)
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Cityscapes in its official layout: two cities with a file of the same number each, all 34 ids."""
    for city in ("aachen", "ulm"):
        name = f"{city}_000000_000019"
        _write_image(tmp_path / "leftImg8bit/train" / city / f"{name}_leftImg8bit.png")
        masks = tmp_path / "gtFine/train" / city
        _write_mask(masks / f"{name}_gtFine_labelIds.png", ids=34)
        _write_mask(masks / f"{name}_gtFine_instanceIds.png")
        _write_image(masks / f"{name}_gtFine_color.png")
    return tmp_path


@pytest.fixture
def gta5(tmp_path: Path) -> Path:
    """GTA5 in its official layout: palette masks with ids 0 to 34, and one of the two images that are left out."""
    for i, number in enumerate(("00001", "00002", "15188")):
        _write_image(tmp_path / "images" / f"{number}.png", seed=i)
        ids = np.random.default_rng(i).integers(0, 35, (24, 32), dtype=np.uint8)
        mask = Image.fromarray(ids).convert("P")
        mask.putpalette(np.random.default_rng(9).integers(0, 256, 768, dtype=np.uint8).tobytes())
        mask.putdata(ids.ravel().tolist())
        (tmp_path / "labels").mkdir(exist_ok=True)
        mask.save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


@pytest.fixture
def synthia(tmp_path: Path) -> Path:
    """SYNTHIA-RAND-CITYSCAPES: 16-bit colour masks with class (0 to 22), instance (up to 999) and 0."""
    for i in range(2):
        _write_image(tmp_path / "RGB" / f"{i:07d}.png", seed=i)
        random = np.random.default_rng(i)
        mask = np.zeros((24, 32, 3), np.uint16)  # blue, green, red
        mask[..., 2] = random.integers(0, 23, (24, 32))
        mask[..., 1] = random.integers(0, 1000, (24, 32))
        (tmp_path / "GT" / "LABELS").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "GT" / "LABELS" / f"{i:07d}.png"), mask)
    return tmp_path


def _write_train_ids(path: Path, seed: int) -> None:
    _write_mask(path.with_name(f"{path.name}_gt_labelTrainIds.png"), seed=seed, ids=19)
    _write_mask(path.with_name(f"{path.name}_gt_labelIds.png"), seed=seed, ids=34)
    _write_image(path.with_name(f"{path.name}_gt_labelColor.png"))


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """ACDC: four conditions, test without masks, and the reference images of other folders and names."""
    for i, condition in enumerate(("fog", "night", "rain", "snow")):
        for split in ("train", "val", "test"):
            stem = f"{condition}/{split}/GOPR0475/GOPR0475_frame_{i:06d}"
            _write_image(tmp_path / "rgb_anon" / f"{stem}_rgb_anon.png", seed=i)
            reference = stem.replace(split, f"{split}_ref", 1)
            _write_image(tmp_path / "rgb_anon" / f"{reference}_rgb_ref_anon.png", seed=i)
            if split != "test":
                _write_train_ids(tmp_path / "gt" / stem, seed=i)
    return tmp_path


@pytest.fixture
def dark_zurich(tmp_path: Path) -> Path:
    """Dark Zurich: train at three times of day without masks, val by night with masks."""
    for i, stem in enumerate(("train/night/A/A_1", "train/night/B/B_1", "train/day/C/C_1", "val/night/D/D_1")):
        _write_image(tmp_path / "rgb_anon" / f"{stem}_rgb_anon.png", seed=i)
        if stem.startswith("val"):
            _write_train_ids(tmp_path / "gt" / stem, seed=i)
    return tmp_path


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    """ADE20K's benchmark: JPEG images, 8-bit masks with 0 and 1 to 150, and a test image without a mask."""
    for split, name in (("training", "train"), ("validation", "val"), ("testing", "test")):
        for i in (1, 2):
            stem = f"{split}/ADE_{name}_{i:08d}"
            _write_image(tmp_path / "images" / f"{stem}.jpg", seed=i)
            if name != "test":
                _write_mask(tmp_path / "annotations" / f"{stem}.png", seed=i, ids=151)
    return tmp_path


@pytest.fixture
def ade20k_full(tmp_path: Path) -> Path:
    """ADE20K's full annotations: masks of classes (red, green) and instances (blue) in folders of scenes; train ids 0,
    255 and 846, other objects and unlabelled pixels in every one. Parts, instances and JSON lie beside them."""
    used = np.flatnonzero(ADE20K_FULL_IDS != WIDE_FILE_IGNORED)
    some = [0, 1, 3688, *(int(np.flatnonzero(i == ADE20K_FULL_IDS)[0]) for i in (0, 255, 846))]
    for split, name in (("training", "train"), ("validation", "val")):
        for i, scene in enumerate(("urban/street", "home_or_hotel/bedroom")):
            stem = tmp_path / "images" / "ADE" / split / scene / f"ADE_{name}_{i + 1:08d}"
            _write_image(stem.with_suffix(".jpg"), seed=i)
            random = np.random.default_rng(i)
            numbers = random.choice(used, (24, 32))
            numbers[: len(some)] = np.array(some)[:, None]
            mask = np.stack(
                [random.integers(0, 9, (24, 32)), numbers % 256, numbers // 256 * 10], -1
            )  # blue, green, red
            for end in ("_seg", "_parts_1"):
                assert cv2.imwrite(f"{stem}{end}.png", mask.astype(np.uint8))
            _write_mask(stem / f"instance_000_{stem.name}.png")
            _write_image(stem / "not_an_image_of_the_set.jpg")
            stem.with_suffix(".json").write_text("{}")
    return tmp_path


@pytest.fixture
def coco_stuff(tmp_path: Path) -> Path:
    """COCO-Stuff 164k: JPEG images, one of them grey, and pixelmaps with the 171 numbers that are used and 255."""
    unused = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
    used = np.array([i for i in range(182) if i not in unused] + [255], dtype=np.uint8)
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / split).mkdir(parents=True)
        for i in (9, 25):
            _write_image(tmp_path / "images" / split / f"{i:012d}.jpg", seed=i)
            mask = used[np.random.default_rng(i).integers(0, len(used), (24, 32))]
            assert cv2.imwrite(str(tmp_path / "annotations" / split / f"{i:012d}.png"), mask)
        grey = cv2.imread(str(tmp_path / "images" / split / f"{9:012d}.jpg"), cv2.IMREAD_GRAYSCALE)
        assert cv2.imwrite(str(tmp_path / "images" / split / f"{9:012d}.jpg"), grey)
    return tmp_path


CLASSES = """
classes:
  ground: [128, 64, 128]
  "café roof": [0, 0, 142]
  tree: [10, 200, 30]
ids: {ground: 7, "café roof": 26, tree: 21}
void: [0, [0, 0, 0]]
things: ["café roof"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One's own data in a flat folder: five images with masks, of ids where the number is even, else of colours."""
    ids = np.array([7, 26, 21, 0], dtype=np.uint8)
    colors = np.array([[128, 64, 128], [0, 0, 142], [10, 200, 30], [0, 0, 0]], dtype=np.uint8)
    (tmp_path / "classes.yaml").write_text(CLASSES, encoding="utf-8")
    (tmp_path / "masks").mkdir()
    for i in range(5):
        _write_image(tmp_path / "images" / f"photo {i}.{'jpg' if i % 2 else 'png'}", seed=i)
        classes = np.random.default_rng(i).integers(0, 4, (24, 32))
        Image.fromarray((colors if i % 2 else ids)[classes]).save(tmp_path / "masks" / f"photo {i}.png")
    return tmp_path
