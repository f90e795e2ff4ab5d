"""What users have on their disks, for every data set: odd names, links and images read well, bad files are named."""

from __future__ import annotations

import io
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.data import (
    ACDC,
    ADE20K,
    GTA5,
    ADE20KFull,
    CamVid,
    Cityscapes,
    COCOStuff,
    DarkZurich,
    LabelledFolder,
    SegmentationDataset,
    Streets,
    Synthia,
)
from protoseg.types import ProtosegError
from tests.data.helpers import DATASETS

Tree = tuple[Path, Callable[[Path], SegmentationDataset]]
MASK_FOLDERS = {"annotations", "gt", "GT", "gtFine", "labels", "masks", "trainannot", "valannot", "testannot"}
FLAT = ("ade20k", "camvid", "coco_stuff", "folder", "gta5", "synthia")


@pytest.fixture(params=DATASETS)
def tree(request: pytest.FixtureRequest) -> Tree:
    return request.getfixturevalue(request.param), DATASETS[request.param]


@pytest.fixture(params=FLAT)
def flat(request: pytest.FixtureRequest) -> Tree:
    return request.getfixturevalue(request.param), DATASETS[request.param]


def files(data: SegmentationDataset) -> tuple[Path, Path]:
    """Image and mask of the first sample."""
    image, mask = data.samples[0]
    assert mask is not None
    return image, mask


def same(a: SegmentationDataset, b: SegmentationDataset) -> bool:
    pixels = [[np.dstack(data.read(i)) for i in range(len(data))] for data in (a, b)]
    return len(a) == len(b) > 0 and all(map(np.array_equal, *pixels))


def link(source: Path, target: Path) -> None:
    """Make of ``target`` the tree ``source``, with links for the folders without subfolders and for loose files."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_dir() and any(child.is_dir() for child in entry.iterdir()):
            link(entry, target / entry.name)
        else:
            (target / entry.name).symlink_to(entry)


def test_linked_folders(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, make = tree
    linked = tmp_path_factory.mktemp("links") / "tree"
    link(root, linked)
    assert same(make(linked), make(root))


def test_linked_files(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, make = tree
    before = [make(root).read(i) for i in range(len(make(root)))]
    store = tmp_path_factory.mktemp("store")
    for number, path in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
        path.rename(store / str(number))
        path.symlink_to(store / str(number))
    after = make(root)
    assert all(np.array_equal(np.dstack(after.read(i)), np.dstack(old)) for i, old in enumerate(before))
    files(after)[0].resolve().unlink()
    with pytest.raises(ProtosegError, match="got none there"):  # a link to nothing is told, not left out
        make(root).read(0)


def test_link_to_a_folder_above(cityscapes: Path) -> None:
    (cityscapes / "leftImg8bit/train/ulm/loop").symlink_to(cityscapes / "leftImg8bit/train")
    with pytest.raises(ProtosegError, match=r"ulm/loop, a link to a folder above it"):
        Cityscapes(cityscapes)


def test_upper_case_suffixes(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, make = tree
    upper = tmp_path_factory.mktemp("upper") / "tree"
    shutil.copytree(root, upper)
    for path in [p for p in upper.rglob("*") if p.suffix in (".png", ".jpg")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    assert same(make(upper), make(root))


def test_spaces_and_accents_in_names(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, make = tree
    named = tmp_path_factory.mktemp("Prüfung 路") / "Straßen und Wege"
    shutil.copytree(root, named)
    before = make(root)
    for path in [p for p in named.rglob("*") if p.suffix in (".png", ".jpg")]:
        of_masks = bool(MASK_FOLDERS & set(path.relative_to(named).parts))
        form = unicodedata.normalize("NFD" if of_masks else "NFC", "é 路")  # macOS may write either
        path.rename(path.with_name(f"{form} {path.name}"))
    after = make(named)
    assert all(image.name.startswith("é 路 ") for image, _ in after.samples)
    if not isinstance(after, LabelledFolder | GTA5):  # whose split, whose left-out images go by name
        assert same(after, before)


@pytest.mark.parametrize("form", ["16-bit", "RGBA", "grey", "grey 16-bit", "palette"])
def test_forms_of_images(tree: Tree, form: str) -> None:
    root, make = tree
    path, _ = files(make(root))
    colors = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    expected = colors if form in ("16-bit", "RGBA") else np.repeat(colors[..., :1], 3, axis=2)
    deep = expected[..., ::-1].astype(np.uint16) << 8 | 77
    written = {
        "16-bit": lambda: cv2.imencode(".png", deep)[1].tobytes(),
        "grey 16-bit": lambda: cv2.imencode(".png", deep[..., 0])[1].tobytes(),
        "RGBA": lambda: png(Image.fromarray(np.dstack([colors, colors[..., 0]]))),  # transparent ones keep their colour
        "grey": lambda: png(Image.fromarray(expected[..., 0])),
        "palette": lambda: png(Image.fromarray(expected[..., 0]).convert("P")),
    }
    path.write_bytes(written[form]())
    image, _ = make(root).read(0)
    assert image.dtype == np.uint8
    assert np.array_equal(image, expected)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_jpeg_inside_a_mask(tree: Tree) -> None:
    root, make = tree
    _, mask = files(make(root))
    Image.open(mask).convert("RGB").save(mask, "JPEG", quality=100)
    with pytest.raises(ProtosegError, match=rf"mask {re.escape(str(mask))}: .*got a JPEG, whose compression"):
        make(root).read(0)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_mask_stored_as_jpeg(flat: Tree, suffix: str) -> None:
    root, make = flat
    _, mask = files(make(root))
    Image.open(mask).convert("L").save(mask.with_suffix(suffix), "JPEG")
    assert len(make(root)) > 0  # a picture beside the mask does no harm
    mask.unlink()
    with pytest.raises(ProtosegError, match=rf"mask {re.escape(str(mask.with_suffix(suffix)))}: .*got a JPEG"):
        make(root)


def test_image_listed_twice(flat: Tree) -> None:
    root, make = flat
    image, _ = files(make(root))
    shutil.copy(image, image.with_suffix(".jpeg"))
    with pytest.raises(ProtosegError, match=r"expected one file per name, got .*\.jpeg"):
        make(root)


def test_missing_mask_and_missing_image(tree: Tree) -> None:
    root, make = tree
    image, mask = files(make(root))
    shutil.copy(image, image.with_name(f"new {image.name}"))
    with pytest.raises(ProtosegError, match=r"1 image\(s\) without mask: .*new "):
        make(root)
    image.with_name(f"new {image.name}").unlink()
    shutil.copy(mask, mask.with_name(f"new {mask.name}"))
    with pytest.raises(ProtosegError, match=r"1 mask\(s\) without image: .*new "):
        make(root)


def test_files_cut_short(tree: Tree) -> None:
    root, make = tree
    data = make(root)
    for path in files(data):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ProtosegError, match=rf"{re.escape(str(path))}: expected a complete image"):
            data.read(0)
        path.write_bytes(whole)
    data.read(0)


def test_sizes_that_differ(tree: Tree, write_image: Callable[..., None]) -> None:
    root, make = tree
    image, _ = files(make(root))
    write_image(image, 20, 30)
    with pytest.raises(ProtosegError, match=rf"one size, got 30 x 20 in {re.escape(str(image))} and 32 x 24"):
        make(root).read(0)


def test_unknown_id(tree: Tree) -> None:
    root, make = tree
    data = make(root)
    _, mask = files(data)
    ids = np.full((24, 32), 200, np.uint8)
    assert cv2.imwrite(str(mask), ids if data.id_channel is None else np.dstack([ids] * 3).astype(np.uint16))
    got = 20 * 256 + 200 if isinstance(data, ADE20KFull) else 200
    with pytest.raises(ProtosegError, match=rf"mask {re.escape(str(mask))}: expected class ids .*got {got}"):
        data.read(0)


def test_empty_tree(tree: Tree) -> None:
    root, make = tree
    for path in [p for p in root.rglob("*") if p.suffix in (".png", ".jpg")]:
        path.unlink()
    with pytest.raises(ProtosegError, match=r"expected images \(\.png, \.jpg, .*\) and masks, got none"):
        make(root)


@pytest.mark.parametrize(
    "kind",
    [ACDC, ADE20K, ADE20KFull, CamVid, Cityscapes, COCOStuff, DarkZurich, GTA5, LabelledFolder, Streets, Synthia],
)
def test_where_it_comes_from(kind: type[SegmentationDataset], tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match="does not exist") as error:
        kind(tmp_path / "none", **({} if kind is not LabelledFolder else {"classes": "none.yaml"}))  # type: ignore[call-arg]
    text, described = str(error.value), " ".join(str(kind.__doc__).split())
    assert kind.source in text
    assert re.search(r"data\.root=FOLDER.*data\.target\.root.*PROTOSEG_DATA", text)
    for address in re.findall(r"https?://[^ ,:]+", kind.source):
        assert address.rstrip(".") in described
    if kind not in (LabelledFolder, Streets):
        assert "http" in kind.source
        assert re.search(r"(19|20)\d\d[):;]", kind.source), "a citation"
        for words in (kind.source, described):
            assert re.search("non-commercial|research|terms of use|CC BY", words), "a licence"
