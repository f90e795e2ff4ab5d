"""Images and masks of every format that is read, and what is refused of it."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoseg.data import LabelledFolder, limit_pixels
from protoseg.data.decoding import open_picture
from protoseg.data.files import read_image, read_label
from protoseg.data.label_spaces import read_ids
from protoseg.data.statistics import image_size
from protoseg.types import ProtosegError
from tests.conftest import at_most

CAMVID_IDS = read_ids("camvid")

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8)
IDS = RANDOM.integers(0, 11, (24, 32), dtype=np.uint8)
EXACT: dict[str, dict[str, Any]] = {
    ".bmp": {},
    ".tif": {},
    ".TIFF": {"compression": "tiff_lzw"},
    ".jp2": {},
    ".npy": {},
    ".gif": {},
    ".webp": {"lossless": True},
}


def save(array: np.ndarray, path: Path, **options: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", EXACT)
def test_images(tmp_path: Path, suffix: str) -> None:
    photo = PHOTO // 128 * 200 if suffix == ".gif" else PHOTO  # few enough colours for a palette
    path = save(photo, tmp_path / f"a{suffix}", **EXACT[suffix])
    assert np.array_equal(read_image(path), photo)
    assert image_size(path) == (32, 24)
    grey = save(PHOTO[..., 0], tmp_path / f"b{suffix}", **EXACT[suffix])
    assert np.array_equal(read_image(grey), PHOTO[..., :1].repeat(3, 2))


@pytest.mark.parametrize("suffix", [suffix for suffix in EXACT if suffix != ".webp"])  # which has no grey
def test_masks_of_ids(tmp_path: Path, suffix: str) -> None:
    assert np.array_equal(read_label(save(IDS, tmp_path / f"a{suffix}", **EXACT[suffix]), CAMVID_IDS), IDS)


@pytest.mark.parametrize("suffix", EXACT)
def test_a_folder_of_them(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.yaml").write_text("classes: {a: [255, 0, 0], b: [0, 255, 0]}")
    pure = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)[IDS % 2]
    for i in range(3):
        save(PHOTO, tmp_path / "images" / f"{i}{suffix}", **EXACT[suffix])
        save(pure if suffix == ".webp" else IDS % 2, tmp_path / "masks" / f"{i}{suffix}", **EXACT[suffix])
    data = LabelledFolder(tmp_path, tmp_path / "classes.yaml")
    assert len(data) == 2
    assert np.array_equal(data.read(0)[1], IDS % 2)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.int32, np.uint16, np.int8])
def test_arrays_of_other_numbers_as_masks(tmp_path: Path, dtype: type) -> None:
    ids = (IDS % 2).astype(dtype)
    assert np.array_equal(read_label(save(ids, tmp_path / "a.npy"), CAMVID_IDS), IDS % 2)
    assert np.array_equal(read_label(save(np.asfortranarray(ids), tmp_path / "b.npy"), CAMVID_IDS), IDS % 2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PHOTO.transpose(2, 0, 1), r"Cannot handle this data type"),
        (IDS.astype(np.float32), "floating-point numbers, not grey or RGB of 8 or 16 bits; .* data.dataset.channels"),
        (IDS[0], r"it is an array of \(32,\), not h w, h w 3 or h w 4"),
        (IDS.astype(np.int64) << 40, "its numbers are too large"),
        (np.array([[{}]], dtype=object), "cannot create an OBJECT array"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ProtosegError, match=rf"image .*a\.npy: expected a complete image file.*{message}"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.99])
def test_files_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(PHOTO, tmp_path / f"a{suffix}", **EXACT[suffix])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ProtosegError, match=r"image .*: expected a complete image file"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "options", "got"),
    [
        ("a.webp", {}, "a lossy WebP"),
        ("a.jp2", {"irreversible": True}, "a lossy JPEG 2000"),
        ("a.tif", {"compression": "jpeg"}, "a TIFF of lossy form"),
        ("a.tif", {"tiffinfo": {274: 6}}, "a TIFF of 8 bits a channel, orientation 6"),
        ("a.tif", {"save_all": True, "append_images": [Image.fromarray(IDS)]}, "a file of several pages or frames"),
        ("a.gif", {"save_all": True, "append_images": [Image.fromarray(IDS[::-1])]}, "a file of several pages"),
    ],
)
def test_masks_whose_ids_may_be_others(tmp_path: Path, name: str, options: dict[str, Any], got: str) -> None:
    with pytest.raises(ProtosegError, match=rf"mask .*{name}: expected ids as they were drawn, got {got}"):
        read_label(save(IDS, tmp_path / name, **options), CAMVID_IDS)


def test_pages_and_frames_are_no_image(tmp_path: Path) -> None:
    for name in ("a.tif", "a.gif", "a.webp"):
        path = save(PHOTO, tmp_path / name, save_all=True, append_images=[Image.fromarray(255 - PHOTO)])
        with pytest.raises(ProtosegError, match=rf"{name}: .*it has 2 pages or frames, not one"):
            read_image(path)


def test_a_tiff_of_16_bits_and_one_of_four_channels(tmp_path: Path) -> None:
    deep = RANDOM.integers(0, 1 << 16, (24, 32), dtype=np.uint16)
    assert np.array_equal(read_image(save(deep, tmp_path / "a.tif"))[..., 1], deep >> 8)
    Image.fromarray(np.dstack([PHOTO, IDS]), "RGBX").save(tmp_path / "b.tif")
    with pytest.raises(ProtosegError, match=r"b\.tif: .*its pixels are of 4 channels, not grey or RGB"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
def test_turned_as_exif_says(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {274: orientation}} if name == "a.tif" else {"exif": exif, "lossless": True}
    path = save(PHOTO, tmp_path / name, **options)
    rotated = {5: np.rot90(PHOTO)[::-1], 6: np.rot90(PHOTO, -1), 7: np.rot90(PHOTO)[:, ::-1], 8: np.rot90(PHOTO)}
    mirrored = {1: PHOTO, 2: PHOTO[:, ::-1], 3: PHOTO[::-1, ::-1], 4: PHOTO[::-1]}
    assert np.array_equal(read_image(path), (mirrored | rotated)[orientation])
    assert np.array_equal(read_image(path, turn=False), PHOTO)


def encoded(form: str, **options: Any) -> bytearray:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, form, **options)
    return bytearray(buffer.getvalue())


def jp2(in_box: int, in_stream: int) -> bytes:
    data = encoded("JPEG2000")
    at, box = data.index(b"\xff\x4f\xff\x51"), data.index(b"ihdr")
    data[at + 8 : at + 16] = struct.pack(">II", in_stream, in_stream)
    data[at + 24 : at + 32] = struct.pack(">II", in_stream, in_stream)
    data[box + 4 : box + 12] = struct.pack(">II", in_box, in_box)
    return bytes(data)


def gif(screen: int, frame: int) -> bytes:
    data = encoded("GIF")
    data[6:10] = struct.pack("<HH", screen, screen)
    at = data.index(b"\x2c\0\0\0\0")
    data[at + 5 : at + 9] = struct.pack("<HH", frame, frame)
    return bytes(data)


def bmp(side: int) -> bytes:
    data = encoded("BMP")
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def npy(side: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (side, side)})
    return buffer.getvalue() + bytes(99)


def webp(side: int) -> bytes:
    still = bytes(encoded("WEBP", lossless=True)[12:])
    frame = b"\0" * 6 + (31).to_bytes(3, "little") + (23).to_bytes(3, "little") + b"\1\0\0\0" + still
    parts = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + 2 * (side - 1).to_bytes(3, "little")
    parts += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def tiff(side: int) -> bytes:
    data = encoded("TIFF")
    for tag in (256, 257):
        at = (
            data.index(struct.pack("<HH", tag, 4))
            if struct.pack("<HH", tag, 4) in data
            else data.index(struct.pack("<HH", tag, 3))
        )
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


BOMBS = {
    "jp2": jp2(30_000, 30_000),
    "jp2 in the stream": jp2(32, 30_000),
    "gif": gif(30_000, 24),
    "gif in the frame": gif(24, 60_000),
    "bmp": bmp(30_000),
    "npy": npy(30_000),
    "webp": webp(30_000),
    "tif": tiff(30_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"bomb.{name[:4].strip()}"
    path.write_bytes(BOMBS[name])
    message = r"bomb\..*(at most 500000000 pixels|expected a complete image file)"
    with at_most(0.5):
        for read in (read_image, lambda path: read_label(path, CAMVID_IDS)):
            with pytest.raises(ProtosegError, match=message):
                read(path)


@pytest.mark.parametrize("suffix", EXACT)
def test_the_limit_is_of_all_formats(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(PHOTO, tmp_path / f"a{suffix}", **EXACT[suffix])
    monkeypatch.setenv("PROTOSEG_MAX_PIXELS", "0")  # put back after the test
    limit_pixels(24 * 32)
    assert read_image(path).shape == (24, 32, 3)
    limit_pixels(24 * 32 - 1)
    with pytest.raises(ProtosegError, match="expected at most 767 pixels, got 32 x 24"):
        read_image(path)


def test_no_other_decoder_is_let_near_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert Image.open(tmp_path / "a.png").format == "EPS"  # Pillow would start Ghostscript
    with pytest.raises(OSError, match="cannot identify"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(ProtosegError, match=r"a\.png: expected a complete image file"):
        read_image(tmp_path / "a.png")


def test_grey_levels_in_a_gif_are_the_ids(tmp_path: Path) -> None:
    """A GIF numbers the grey levels of an image anew."""
    for kind, pixels in (("images", np.zeros((4, 3, 3), np.uint8)), ("masks", np.uint8([[0, 1, 3]] * 4))):
        (tmp_path / kind).mkdir()
        for name in ("a", "b", "c"):
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.gif")
    (tmp_path / "classes.yaml").write_text("classes: [a, b, c, d]")
    data = LabelledFolder(tmp_path, tmp_path / "classes.yaml")
    assert [data.read_label(i).tolist() for i in range(len(data))] == [[[0, 1, 3]] * 4] * 2
