from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.data.files import read_image, read_label
from protoseg.data.label_spaces import read_ids
from protoseg.data.pairing import by_key, list_images, pair
from protoseg.data.statistics import image_size
from protoseg.types import ProtosegError

CAMVID_IDS = read_ids("camvid")


def photo() -> np.ndarray:
    ramp = np.linspace(0, 255, 96 * 64 * 3).reshape(64, 96, 3)
    return (ramp + np.random.default_rng(0).normal(0, 9, ramp.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_read_image_equals_pillow(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(photo()).save(path)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path) - expected).max() <= 2  # decoders of JPEG may round differently


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_read_image_makes_rgb_of_other_modes(tmp_path: Path, mode: str) -> None:
    Image.fromarray(photo()).convert(mode).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (64, 96, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
def test_truncated_image_is_an_error(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(photo()).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ProtosegError, match=rf"image .*cut\{suffix}: expected a complete image"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image_is_an_error_even_if_opencv_says_nothing(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(photo()).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setattr("cv2.imdecode", lambda data, flags: photo())  # as older versions do
    with pytest.raises(ProtosegError, match="expected a complete image"):
        read_image(path)


def test_bytes_after_the_end_of_a_jpeg_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo()).save(path)
    whole = read_image(path)
    path.write_bytes(path.read_bytes() + b"appended by a camera")
    assert np.array_equal(read_image(path), whole)


@pytest.mark.parametrize("read", [read_image, lambda path: read_label(path, CAMVID_IDS)])
def test_non_image_and_missing_file_are_errors(tmp_path: Path, read: object) -> None:
    (tmp_path / "text.png").write_text("not an image, but long enough to be looked at" * 9)
    for name in ("text.png", "gone.png"):
        with pytest.raises(ProtosegError, match=name):
            read(tmp_path / name)  # type: ignore[operator]


def test_pipes_and_devices_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # to read it would wait for ever
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "self.png").symlink_to("self.png")
    assert [path.name for path in list_images(tmp_path, recursive=True)] == ["pipe.png", "self.png", "zero.png"]
    (tmp_path / "self.png").unlink()
    for path in tmp_path.iterdir():
        with pytest.raises(ProtosegError, match=r"\.png.*a folder, a pipe or a device"):
            read_image(path)
        with pytest.raises(ProtosegError, match=r"\.png.*a folder, a pipe or a device"):
            image_size(path)


def test_truncated_mask_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 11, (64, 96), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ProtosegError, match=r"mask .*cut\.png: expected a complete"):
        read_label(path, CAMVID_IDS)


def test_palette_mask_gives_its_indices(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).repeat(4).reshape(6, 8)
    image = Image.fromarray(ids).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.putdata(ids.ravel().tolist())
    image.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert np.array_equal(read_label(tmp_path / "p.png", CAMVID_IDS), np.where(ids == 11, 255, ids))


def test_sixteen_bit_mask(tmp_path: Path) -> None:
    ids = np.array([[0, 5], [11, 10]], dtype=np.uint16)
    Image.fromarray(ids).save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png", CAMVID_IDS).tolist() == [[0, 5], [255, 10]]
    Image.fromarray(ids + 300).save(tmp_path / "b.png")
    with pytest.raises(ProtosegError, match=r"b\.png: expected class ids 0 to 11, 255, got 300, 305, 310, 311"):
        read_label(tmp_path / "b.png", CAMVID_IDS)


def test_rgb_mask_is_an_error(tmp_path: Path, write_image: Callable[..., None]) -> None:
    write_image(tmp_path / "rgb.png")
    with pytest.raises(ProtosegError, match=r"rgb\.png: expected one channel of class ids .*got RGB colours"):
        read_label(tmp_path / "rgb.png", CAMVID_IDS)


def write_colours(path: Path, channels: int, dtype: type) -> np.ndarray:
    """A colour PNG whose first channel is 0 to 11, the others large; OpenCV's order is the reverse."""
    colours = np.full((3, 4, channels), np.iinfo(dtype).max, dtype)
    colours[..., 2] = np.arange(12).reshape(3, 4)
    assert cv2.imwrite(str(path), colours)
    return np.arange(12).reshape(3, 4)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_first_channel_of_several(tmp_path: Path, channels: int, dtype: type) -> None:
    ids = write_colours(tmp_path / "a.png", channels, dtype)
    assert np.array_equal(read_label(tmp_path / "a.png", CAMVID_IDS, channel=0), np.where(ids == 11, 255, ids))


def test_bad_masks_of_several_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_colours(path, 3, np.uint16)
    with pytest.raises(ProtosegError, match=r"a\.png: expected class ids 0 to 11, 255, got 65535"):
        read_label(path, CAMVID_IDS, channel=1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ProtosegError, match=r"mask .*a\.png: expected a complete image"):
        read_label(path, CAMVID_IDS, channel=0)
    with pytest.raises(ProtosegError, match=r"mask .*gone\.png"):
        read_label(tmp_path / "gone.png", CAMVID_IDS, channel=0)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    with pytest.raises(ProtosegError, match=r"ids in channel 0 of a colour PNG.*got one channel"):
        read_label(path, CAMVID_IDS, channel=0)


def test_id_out_of_range_names_file_and_ids(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 12], [200, 12]], dtype=np.uint8)).save(tmp_path / "bad.png")
    with pytest.raises(ProtosegError, match=r"bad\.png: expected class ids 0 to 11, 255, got 12, 200"):
        read_label(tmp_path / "bad.png", CAMVID_IDS)


def test_list_images_takes_any_case_and_leaves_out_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.Jpeg", "._a.jpg", "notes.txt", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.Jpeg"]
    assert [p.name for p in list_images(tmp_path, recursive=True)] == ["a.jpg", "b.PNG", "c.Jpeg", "d.png"]


def test_by_key_refuses_two_files_of_one_name() -> None:
    with pytest.raises(ProtosegError, match=r"a\.jpg and .*a\.png"):
        by_key([Path("x/a.jpg"), Path("x/a.png")], lambda p: p.stem)


def test_pair() -> None:
    names = {name: Path(name) for name in "abcdefgh"}
    assert pair({"b": Path("1"), "a": Path("2")}, {"a": Path("3"), "b": Path("4")}, "x") == [
        (Path("2"), Path("3")),
        (Path("1"), Path("4")),
    ]
    with pytest.raises(ProtosegError, match=r"here: .*got 7 image\(s\) without mask: b, c, d, e, f, \.\.\."):
        pair(names, {"a": Path("a")}, "here")
    with pytest.raises(
        ProtosegError, match=r"got 1 mask\(s\) without image: h.*read are images \(\.png, \.jpg, \.jpeg, "
    ):
        pair({k: v for k, v in names.items() if k != "h"}, names, "here")
    with pytest.raises(ProtosegError, match=r"expected images .* and masks, got none"):
        pair({}, {}, "here")


def test_images_alone() -> None:
    assert pair({"b": Path("1"), "a": Path("2")}, None, "x") == [(Path("2"), None), (Path("1"), None)]
    with pytest.raises(ProtosegError, match=r"here: expected images \([^)]*\), got none"):
        pair({}, None, "here")
