"""One's own folder as people have it: names of folders and splits, ends of names, files that are left out, EXIF."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoseg.cli.main import run_tool
from protoseg.data import GTA5, COCOStuff, LabelledFolder, SegmentationDataModule
from protoseg.types import ProtosegError

SIZE = (24, 32)


def put(root: Path, images: Sequence[str], masks: Sequence[str]) -> Path:
    """Images and masks of these paths, each of one grey: the image's and the mask's number in the list (mod 3)."""
    for paths, channels in ((images, (3,)), (masks, ())):
        for i, name in enumerate(paths):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*SIZE, *channels), i % 3, np.uint8)).save(path)
    (root / "classes.yaml").write_text("classes: {a: [9, 0, 0], b: [0, 9, 0], c: [0, 0, 9]}")
    return root


def names(kind: str, splits: Sequence[str], form: str, end: str = "", suffix: str = ".png") -> list[str]:
    return [f"{form.format(kind=kind, split=split)}/{split}{i}{end}{suffix}" for split in splits for i in range(3)]


def load(root: Path, split: str = "train", **options: Any) -> LabelledFolder:
    return LabelledFolder(root, root / "classes.yaml", split, **options)


def check(root: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    code: object = 0
    try:
        run_tool("data", ["check", "folder", f"data.root={root}", *overrides])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return int(code or 0), said.out + said.err  # type: ignore[call-overload]


def datamodule(root: Path, **options: Any) -> SegmentationDataModule:
    dataset = partial(LabelledFolder, classes=root / "classes.yaml")
    return SegmentationDataModule(dataset, batch_size=1, crop_size=[8, 8], root=str(root), **options)


def stems(data: LabelledFolder) -> list[str]:
    for image, mask in data.samples:
        assert mask is not None
        assert image.stem.split("_")[0] == mask.stem.split("_")[0].split(".")[0]
    return [image.stem for image, _ in data.samples]


@pytest.mark.parametrize(
    ("images", "masks", "train", "val"),
    [
        ("images/{split}", "masks/{split}", "training", "validation"),
        ("images/{split}", "annotations/{split}", "training", "validation"),  # ADE20K
        ("images/{split}", "masks/{split}", "Train", "Val"),
        ("Images/{split}", "Labels/{split}", "TRAIN", "Valid"),
        ("images/{split}", "masks/{split}", "train_set", "valid"),
        ("img_dir/{split}", "ann_dir/{split}", "train", "val"),  # mmsegmentation
        ("leftImg8bit/{split}/ulm", "gtFine/{split}/ulm", "train", "val"),
        ("{split}/images", "{split}/masks", "train", "val"),
        ("{split}/Image", "{split}/Mask", "Training", "Validation"),
    ],
)
def test_splits_in_folders(tmp_path: Path, images: str, masks: str, train: str, val: str) -> None:
    both = (train, val)
    root = put(tmp_path, names("", both, images), names("", both, masks))
    for split, folder in (("train", train), ("val", val)):
        assert stems(load(root, split)) == [f"{folder}{i}" for i in range(3)]
    with pytest.raises(ProtosegError, match=rf"expected a folder of split 'test', got {train}, {val}"):
        load(root, "test")


def test_folders_that_look_like_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folds = ("fold1", "fold2")
    root = put(tmp_path, names("", folds, "images/{split}"), names("", folds, "masks/{split}"))
    code, said = check(root, capsys)
    assert code == 1
    assert (
        "expected folders of splits (train, val, test) or none to draw splits from, got fold1: set data.train" in said
    )
    code, said = check(root, capsys, "data.train_split=fold1", "data.val_split=fold2")
    assert code == 0
    assert "fold1: 3 images and 3 masks read" in said


@pytest.mark.parametrize("name", ["valley", "testimony", "2021_trainstation", "site A"])
def test_folders_that_do_not(tmp_path: Path, name: str) -> None:
    root = put(tmp_path, names("", [name], "images/{split}"), names("", [name], "masks/{split}"))
    assert (len(load(root)), len(load(root, "val"))) == (2, 1)


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    three = ("train", "val", "valid")
    root = put(tmp_path, names("", three, "images/{split}"), names("", three, "masks/{split}"))
    with pytest.raises(ProtosegError, match=r"expected one place of split val, got .*/images/val and .*/images/valid"):
        load(root)
    put(tmp_path, ["train/images/x.png"], [])
    with pytest.raises(ProtosegError, match="expected splits by subfolders or by lists, got the subfolder train and"):
        load(root)


@pytest.mark.parametrize("end", ["_mask", "_gt", "_L", "_labelTrainIds", ".jpg", "-seg", " (1)"])
def test_constant_ends(tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [1, 2, 10, 11, 100]
    root = put(tmp_path, [f"images/{i}.png" for i in numbers], [f"masks/{i}{end}.png" for i in numbers])
    found = load(root).samples + load(root, "val").samples
    assert sorted((image.stem, str(mask and mask.stem)) for image, mask in found) == sorted(
        (f"{i}", f"{i}{end}") for i in numbers
    )
    if end == "_gt":
        assert f"note: {root / 'images'} and {root / 'masks'}: the mask of NAME is NAME_gt" in check(root, capsys)[1]


def test_ends_of_images_too(tmp_path: Path) -> None:
    root = put(
        tmp_path, [f"images/{i}_image.png" for i in range(5)], [f"annotations/{i}_annotation.png" for i in range(5)]
    )
    assert len(stems(load(root))) == 4


def test_one_mask_missing_is_named_and_no_other_is_taken(tmp_path: Path) -> None:
    root = put(tmp_path, [f"images/{i}.png" for i in range(5)], [f"masks/{i}_gt.png" for i in range(4)])
    put(root, [], ["masks/4_x.png"])
    with pytest.raises(ProtosegError, match=r"got 1 image\(s\) without mask: 4 \(beside 4_x.png\)\. Add the missing"):
        load(root)


def test_converted_trees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("_gtFine_labelIds", "_gtFine_labelTrainIds", "_gtFine_color")
    both, images, masks = ("train", "val"), "leftImg8bit/{split}/ulm", "gtFine/{split}/ulm"
    labels = [name for kind in kinds for name in names("", both, masks, kind)]
    root = put(tmp_path, names("", both, images, "_leftImg8bit"), labels)
    (root / "sample_class_stats.json").write_text("[]")
    code, said = check(root, capsys)
    assert code == 1
    assert "expected one mask per image, got 3 kinds of names" in said
    offers = re.findall(r"data\.dataset\.mask_suffix=\S+", said.splitlines()[1])
    assert offers == [f"data.dataset.mask_suffix={kind}" for kind in sorted(kinds)]
    code, said = check(root, capsys, offers[2])
    assert code == 0
    assert "the mask of NAME_leftImg8bit is NAME_gtFine_labelTrainIds" in said
    with pytest.raises(
        ProtosegError, match=r"got mask_suffix='_oops': set data\.dataset\.mask_suffix=_gtFine_color or"
    ):
        load(root, mask_suffix="_oops")


def test_the_offer_of_no_end_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(
        tmp_path,
        [f"images/{i}.png" for i in range(4)],
        [f"labels/{i}{e}.png" for e in ("", "_labelTrainIds") for i in range(4)],
    )
    for i in range(4):  # ids that are no class: were the copies looked at, they would be a fault
        Image.fromarray(np.full(SIZE, 200, np.uint8)).save(root / "labels" / f"{i}_labelTrainIds.png")
    code, said = check(root, capsys)
    offer = re.search(r"set (\S+) or", said)
    assert code == 1
    assert offer is not None
    code, said = check(root, capsys, *shlex.split(offer[1]))
    assert code == 0
    assert "NAME" not in said
    assert all(mask is not None and mask.stem.isdigit() for _, mask in load(root, mask_suffix="").samples)


@pytest.mark.parametrize("make", [GTA5, COCOStuff])
def test_copies_that_converters_leave_in_benchmarks(request: pytest.FixtureRequest, make: type[GTA5]) -> None:
    root = request.getfixturevalue({GTA5: "gta5", COCOStuff: "coco_stuff"}[make])
    before = make(root).samples
    for _, mask in before:
        assert mask is not None
        mask.with_name(f"{mask.stem}_labelTrainIds.png").write_bytes(b"never opened")
    (root / "sample_class_stats.json").write_text("[]")
    assert make(root).samples == before
    assert before[0][1] is not None
    before[0][1].unlink()  # the copy alone is no mask of this data set, and told of
    with pytest.raises(ProtosegError, match=r"without mask: (\w+) \(beside \1_labelTrainIds.png\)"):
        make(root)


def test_several_folders_of_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(
        tmp_path, [f"images/{i}.png" for i in range(4)], [f"{m}/{i}.png" for m in ("masks", "gt") for i in range(4)]
    )
    code, said = check(root, capsys)
    assert code == 1
    assert "got gt, masks: set data.dataset.masks=gt or data.dataset.masks=masks" in said
    assert check(root, capsys, "data.dataset.masks=gt")[0] == 0
    (root / "gt").rename(root / "other")
    assert len(load(root)) == 3
    (root / "images").rename(root / "photos")
    code, said = check(root, capsys)
    assert "expected one folder of images (images, image, " in said
    assert "got masks, other, photos: set data.dataset.images=NAME" in said
    assert check(root, capsys, "data.dataset.images=photos", "data.dataset.masks=other")[0] == 0


def test_an_empty_folder_of_masks_is_none(tmp_path: Path) -> None:
    root = put(tmp_path, [f"images/{i}.png" for i in range(4)], [f"labels/{i}.png" for i in range(4)])
    (root / "masks").mkdir()
    assert len(load(root)) == 3


def test_what_is_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(tmp_path, [f"images/{i}.png" for i in range(4)], [f"masks/{i}.png" for i in range(5)])
    (root / "images" / "4.heic").write_bytes(b"x")
    (root / "images" / "5.HEIC").write_bytes(b"x")
    code, said = check(root, capsys)
    assert code == 1
    assert "images: left out 2 image(s) of formats that are not read (4.heic, 5.HEIC)" in said
    assert "got mask without image: 4 (beside 4.heic). Add the missing files, or move these elsewhere" in said
    assert "remove" not in said
    (root / "masks" / "4.png").unlink()
    data = datamodule(root)
    with pytest.warns(UserWarning, match=r"images: left out 2 image\(s\)"):
        data.prepare_training()


@pytest.mark.parametrize(
    ("root", "classes", "overrides", "train", "val"),
    [
        ("membrane", "{membrane: [0, 0, 0], cell: [255, 255, 255]}", (), 8, 2),
        (
            "cwfid",
            "{soil: [0, 0, 0], crop: [0, 255, 0], weed: [255, 0, 0]}",
            ("data.dataset.masks=annotations",),
            10,
            2,
        ),
    ],
)
def test_real_folders_where_they_lie(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    root: str,
    classes: str,
    overrides: tuple[str, ...],
    train: int,
    val: int,
) -> None:
    place = Path(os.environ.get("PROTOSEG_DATA", "data")) / root
    if not place.exists():
        pytest.skip(f"{root} is not there: set PROTOSEG_DATA to the folder that holds {root}/")
    (tmp_path / "classes.yaml").write_text(f"classes: {classes}")
    overrides = (f"data.dataset.classes={tmp_path / 'classes.yaml'}", *overrides)
    code, said = check(place, capsys, *overrides)
    assert code == 0, said
    assert f"train: {train} images and {train} masks read" in said
    assert f"val: {val} images and {val} masks read" in said


def turned_jpeg(path: Path, orientation: int, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_that_exif_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int) -> None:
    root = put(tmp_path, [f"images/{i}.jpg" for i in range(4)], [f"masks/{i}.png" for i in range(4)])
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:12, :16] = 255  # a bright corner, top left as it is stored
    paths = [root / "images" / f"{i}.jpg" for i in range(4)]
    for path in paths:
        turned_jpeg(path, orientation, pixels)
    code, said = check(root, capsys)
    assert code == (orientation == 6)
    assert "3 of 3 images are read turned as their EXIF says, and masks are never turned" in said
    assert all(str(path) in said for path in paths)
    if orientation == 6:
        assert (
            "the image is read turned as its EXIF says and the mask was drawn otherwise: set data.exif=ignore" in said
        )
    assert "interpolation" not in said
    code, said = check(root, capsys, "data.exif=ignore")
    assert code == 0
    assert "images are read as they are stored" in said
    for exif, corner in (("apply", {3: (-1, -1), 6: (0, -1)}[orientation]), ("ignore", (0, 0))):
        image = datamodule(root, exif=exif).dataset("train", labels=False).read(0)[0]
        assert image.shape[:2] == (SIZE if exif == "ignore" or orientation == 3 else SIZE[::-1])
        assert image[corner].min() > 200
    with pytest.raises(ProtosegError, match="exif: expected one of apply, ignore, got 'maybe'"):
        datamodule(root, exif="maybe")


def test_masks_that_were_drawn_on_turned_images(tmp_path: Path) -> None:
    root = put(tmp_path, [f"images/{i}.jpg" for i in range(4)], [f"masks/{i}.png" for i in range(4)])
    for i in range(4):
        turned_jpeg(root / "images" / f"{i}.jpg", 6, np.zeros((*SIZE, 3), np.uint8))
        Image.fromarray(np.zeros(SIZE[::-1], np.uint8)).save(root / "masks" / f"{i}.png")
    data = load(root)
    assert data.read(0)[0].shape[:2] == SIZE[::-1]
    data.turn = False
    with pytest.raises(ProtosegError, match=r"read as it is stored and the mask was .*: set data\.exif=apply"):
        data.read(0)


def test_other_sizes_are_no_matter_of_exif(tmp_path: Path) -> None:
    root = put(tmp_path, [f"images/{i}.png" for i in range(4)], [f"masks/{i}.png" for i in range(4)])
    for path in (root / "masks").iterdir():
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(path)
    with pytest.raises(
        ProtosegError, match=r"got 32 x 24 in .* and 16 x 12 in .*: export the mask again for this image"
    ):
        load(root).read(0)


@pytest.mark.parametrize(
    ("image", "mask"), [("img_{}", "gt_{}"), ("{}", "label-{}"), ("IMG{}", "MASK{}"), ("a/x.{}", "a/{}")]
)
def test_constant_beginnings(tmp_path: Path, image: str, mask: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [1, 2, 10, 11, 100]
    paths = ([f"images/{image.format(i)}.png" for i in numbers], [f"masks/{mask.format(i)}.png" for i in numbers])
    root = put(tmp_path, *paths)
    found = load(root).samples + load(root, "val").samples
    assert {(str(i.relative_to(root)), str(m and m.relative_to(root))) for i, m in found} == {*zip(*paths, strict=True)}
    put(root, [], [f"masks/{mask.format(i).replace(str(i), f'color_{i}')}.png" for i in numbers])
    if mask == "gt_{}":
        code, said = check(root, capsys)
        offers = re.findall(r"data\.dataset\.mask_suffix=\S+", said.splitlines()[0])
        assert (code, offers) == (1, [f"data.dataset.mask_suffix={end}" for end in ("gt_color_", "gt_")])
        code, said = check(root, capsys, offers[1])
        assert code == 0
        assert "the mask of img_NAME is gt_NAME" in said


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("{}.jpg", "{}_mask.png", {}),
        ("{}.jpg", "{}.png", {}),
        ("{}_rgb.png", "{}_gt.png", {}),
        ("{}.png", "mask-{}.png", {}),
        ("{}.png", "{}_foo.png", {"mask_suffix": "_foo"}),
        ("images/{}.png", "images/{}_L.png", {}),
        ("train/{}.png", "train/{}_mask.png", {}),
        ("images/train/{}.jpg", "images/train/{}.png", {}),
    ],
)
def test_images_and_masks_in_one_folder(tmp_path: Path, image: str, mask: str, options: dict[str, str]) -> None:
    root = put(tmp_path, [image.format(i) for i in range(5)], [mask.format(i) for i in range(5)])
    drawn = "train/" not in image
    found = load(root, **options).samples + (load(root, "val", **options).samples if drawn else [])
    assert {(str(i.relative_to(root)), str(m and m.relative_to(root))) for i, m in found} == {
        (image.format(i), mask.format(i)) for i in range(5)
    }
    alone = load(root, labels=False, **options)
    assert {path for path, _ in alone.samples} <= {path for path, _ in found}
    assert any("left out 5 masks" in note for note in alone.notes)
    (root / mask.format(4)).unlink()
    with pytest.raises(ProtosegError, match=r"without mask: 4"):
        load(root, **options)


def test_photos_in_a_folder_of_no_masks(tmp_path: Path) -> None:
    root = put(tmp_path, [f"{i}.png" for i in range(3)], [])
    with pytest.raises(ProtosegError, match=r"expected one folder of masks \(masks, .*got no folder"):
        load(root)
    put(root, [], ["test/0.png"])  # as before: a folder of a name that is a split's, beside images and masks
    put(root, [f"images/{i}.png" for i in range(3)], [f"masks/{i}.png" for i in range(3)])
    assert len(load(root)) == 2
