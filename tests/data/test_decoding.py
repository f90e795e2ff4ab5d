"""The limit of pixels, and JPEGs of which a part is missing though they end as they should."""

from __future__ import annotations

import io
import multiprocessing
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from protoseg.api import as_tensor
from protoseg.cli.main import run_tool
from protoseg.data import CamVid, limit_pixels
from protoseg.data.decoding import check_pixels, decode_jpeg
from protoseg.data.export import packed_png
from protoseg.data.files import read_image, read_label
from protoseg.data.label_spaces import read_ids
from protoseg.data.statistics import image_sizes
from protoseg.types import ProtosegError
from tests.conftest import at_most

CAMVID_IDS = read_ids("camvid")

LIMIT = "PROTOSEG_MAX_PIXELS"


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the limit back after the test."""
    monkeypatch.setenv(LIMIT, "500000000")


def photo(height: int = 97, width: int = 131) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(
        rng.integers(0, 256, (9, 13, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray | Image.Image | None = None, **options: Any) -> bytes:
    image, buffer = photo() if image is None else image, io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def bomb(path: Path, width: int, height: int, depth: int = 1) -> None:
    """A grey PNG of zeros: a few kB for a square of 30 000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    row = bytes(1 + (width * depth + 7) // 8)
    body = b"".join(rows.compress(row * 1000) for _ in range(height // 1000)) + rows.compress(row * (height % 1000))
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", body + rows.flush()) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


READERS = {
    "image": read_image,
    "mask": lambda path: read_label(path, CAMVID_IDS),
    "channels": lambda path: read_label(path, CAMVID_IDS, channel=0),
    "predict": as_tensor,
    "pack": lambda path: packed_png(path, 1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reader", READERS)
def test_a_bomb_is_refused_at_once(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "bomb.png"
    bomb(path, 30_000, 30_000)
    assert path.stat().st_size < 150_000
    with at_most(0.5), pytest.raises(ProtosegError) as error:
        READERS[reader](path)
    for part in (str(path), "at most 500000000 pixels, got 30000 x 30000", "set max_pixels=900000000"):
        assert part in str(error.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP"])  # in name, all are JPEGs
def test_the_limit_is_of_all_forms(tmp_path: Path, form: str, limit: None) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo()).save(path, form)
    limit_pixels(97 * 131)
    assert read_image(path).shape == (97, 131, 3)
    limit_pixels(97 * 131 - 1)
    with pytest.raises(ProtosegError, match=r"image .*a\.jpg: expected at most 12706 pixels, got 131 x 97 = 12707"):
        read_image(path)


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_does_not_bite_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: None) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "b.png", "GIF")
    assert read_label(tmp_path / "a.png", CAMVID_IDS).shape == (20, 20)
    assert read_image(tmp_path / "b.png").shape == (20, 20, 3)
    limit_pixels(300)
    with pytest.raises(ProtosegError, match="at most 300 pixels"):  # between Pillow's warning and its error
        read_image(tmp_path / "b.png")


def test_sides_that_no_decoder_takes(tmp_path: Path) -> None:
    bomb(tmp_path / "long.png", 1_100_000, 1)
    with pytest.raises(ProtosegError, match=r"long\.png: expected sides of at most 1000000 pixels, got 1100000 x"):
        read_image(tmp_path / "long.png")


def test_sizes_above_the_limit(camvid: Path, limit: None) -> None:
    assert list(image_sizes(CamVid(camvid, "train"))) == [(32, 24)]
    limit_pixels(700)
    with pytest.raises(ProtosegError, match="at most 700 pixels, got 32 x 24"):
        image_sizes(CamVid(camvid, "train"))


def test_spawned_workers_know_the_limit(monkeypatch: pytest.MonkeyPatch, limit: None) -> None:
    limit_pixels(99)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        monkeypatch.setenv(LIMIT, pool.apply(os.getenv, (LIMIT,)))  # what such a process has of this one
    with pytest.raises(ProtosegError, match="at most 99 pixels"):
        check_pixels("image a.png", 10, 10)


def test_the_tool_for_data_sets(camvid: Path, capsys: pytest.CaptureFixture[str], limit: None) -> None:
    with pytest.raises(SystemExit):
        run_tool("data", ["check", "camvid", f"data.root={camvid}", "max_pixels=700"])
    assert "expected at most 700 pixels, got 32 x 24" in capsys.readouterr().out


@pytest.mark.parametrize("pixels", [0, -1, 1 << 31, "many", 1.5])
def test_wrong_limits(pixels: Any) -> None:
    with pytest.raises(ProtosegError, match="max_pixels: expected a whole number from 1 to 1073741824"):
        limit_pixels(pixels)


def forms() -> dict[str, bytes]:
    """JPEGs as cameras, editors and libraries write them."""
    found = {
        f"{sampling} {quality} {'progressive' if progressive else ''} {restart}": jpeg(
            subsampling=sampling, quality=quality, progressive=progressive, restart_marker_blocks=restart
        )
        for sampling in ("4:4:4", "4:2:2", "4:2:0")
        for quality in (30, 90)
        for progressive in (False, True)
        for restart in (0, 5)
    }
    for sampling in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440):
        encoded = cv2.imencode(".jpg", photo(), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling])[1]
        found[f"OpenCV {sampling:x}"] = encoded.tobytes()
    for progressive in (False, True):
        for mode in ("L", "CMYK"):
            found[f"{mode} {progressive}"] = jpeg(Image.fromarray(photo()).convert(mode), progressive=progressive)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"turned {orientation}"] = jpeg(exif=exif)
    plain = found["turned 1"]
    return found | {
        "RGB": jpeg(keep_rgb=True),
        "optimised": jpeg(optimize=True),
        "one colour": jpeg(np.full((1200, 1600, 3), 9, np.uint8), optimize=True, progressive=True),
        "stray bytes in the header": plain[:20] + b"\x12\xff\x00\x34" + plain[20:],
        "stray bytes before the end": plain[:-2] + b"\x55" * 40 + plain[-2:],
        "unknown revision": jpeg().replace(b"JFIF\0\1", b"JFIF\0\7"),
        "appended": plain + b"appended by a camera",
        "another one appended": plain + jpeg(),
    }


@pytest.fixture(autouse=True)
def _room_for_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 20)  # Pillow fails to write restart markers into less


def test_whole_jpegs_are_read_as_opencv_reads_them(tmp_path: Path) -> None:
    for name, data in forms().items():
        (tmp_path / "a.jpg").write_bytes(data)
        expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.array_equal(read_image(tmp_path / "a.jpg"), expected), name


def test_most_jpegs_are_decoded_once() -> None:
    slow = {name for name, data in forms().items() if decode_jpeg(data) is None}
    assert slow == {
        *(f"CMYK {progressive}" for progressive in (False, True)),
        "stray bytes before the end",
        "unknown revision",
    }


def test_jpegs_that_miss_a_part_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    for name, data in forms().items():
        if name in ("unknown revision", "one colour", "stray bytes before the end", "appended", "another one appended"):
            continue
        start = data.find(b"\xff\xda") + 20
        late = start if b"\xff\xda" in data[-14:] else len(data) - 12  # nobody sees that a whole scan is missing
        ended = [data[:at] + b"\xff\xd9" for at in (start, (start + len(data)) // 2, late)]
        for cut in (data[:start] + data[-12:], *ended):
            path.write_bytes(cut)
            try:
                read_image(path)
            except ProtosegError as error:
                assert f"image {path}: expected a complete image" in str(error)  # noqa: PT017
            else:
                pytest.fail(f"{name}: {len(cut)} of {len(data)} bytes are read")


def test_a_jpeg_too_short_for_its_size_is_not_decoded(tmp_path: Path) -> None:
    data = bytearray(jpeg(progressive=True))
    at = data.index(b"\xff\xc2") + 5
    data[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    (tmp_path / "a.jpg").write_bytes(data)
    with at_most(0.5), pytest.raises(ProtosegError, match=r"a\.jpg: .*bytes cannot hold 20000 x 20000 pixels"):
        read_image(tmp_path / "a.jpg")


def test_a_png_chunk_that_promises_gigabytes(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = struct.pack(">I", 0x7FFF_FFF0)
    (tmp_path / "a.png").write_bytes(data)
    with at_most(0.5), pytest.raises(ProtosegError, match=r"a\.png: expected a complete image file, got .*cut short"):
        read_image(tmp_path / "a.png")
