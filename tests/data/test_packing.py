"""Packed copies hold the same pixels in the same places, and train as the originals do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from protoseg.cli.main import run_tool
from protoseg.data import GTA5, CamVid, SegmentationDataset, Synthia
from protoseg.data.export import encode_png, pack, packed_png
from protoseg.types import ProtosegError


def same_samples(a: SegmentationDataset, b: SegmentationDataset) -> bool:
    return len(a) == len(b) > 0 and all(
        np.array_equal(x, y) for i in range(len(a)) for x, y in zip(a.read(i), b.read(i), strict=True)
    )


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4), (1, 1, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("level", [0, 1])
def test_png_reads_back(shape: tuple[int, ...], dtype: Any, level: int) -> None:
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    found = cv2.imdecode(np.frombuffer(encode_png(array, level), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found.dtype == dtype
    assert np.array_equal(found, array)


def test_camvid(camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (camvid / "classes.yaml").write_text("kept")
    output = tmp_path_factory.mktemp("packed")
    before, after = pack([CamVid(camvid, split) for split in ("train", "val")], camvid, output)
    for split in ("train", "val"):
        assert same_samples(CamVid(camvid, split), CamVid(output, split))
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*"))
    assert files[0] == "classes.yaml"
    assert len(files) == 1 + 2 * 10
    assert after == sum((output / name).stat().st_size for name in files)
    assert before == sum((camvid / name).stat().st_size for name in files)
    # A JPEG is copied; a PNG has a row of pixels after each byte 0 of "no filter".
    jpeg = "train/0001TP_000001.jpg"
    assert (output / jpeg).read_bytes() == (camvid / jpeg).read_bytes()
    image = CamVid(camvid, "train").read(3)[0]
    assert b"\0" + image[5].tobytes() in (output / "train" / CamVid(camvid, "train").samples[3][0].name).read_bytes()


def test_16_bit_and_palette_masks(synthia: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("packed")
    pack([Synthia(synthia)], synthia, output)
    assert same_samples(Synthia(synthia), Synthia(output))


def test_palette_masks(gta5: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("packed")
    pack([GTA5(gta5)], gta5, output)
    assert same_samples(GTA5(gta5), GTA5(output))


def test_what_is_there_is_kept(camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("packed")
    data = [CamVid(camvid, "train")]
    pack(data, camvid, output)
    done, gone = (output / "trainannot" / data[0].samples[i][0].with_suffix(".png").name for i in (0, 1))
    done.write_bytes(b"there")
    gone.unlink()
    pack(data, camvid, output)
    assert done.read_bytes() == b"there"
    assert gone.is_file()


def test_a_turned_image_stays_as_it_is(tmp_path: Path) -> None:
    """OpenCV turns images by their EXIF orientation, which an encoded array has not."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")).size == (6, 9)
    seen = cv2.imread(str(tmp_path / "turned.png"))
    packed = packed_png(tmp_path / "turned.png", 0)
    if packed is not None:  # an OpenCV that does not turn PNGs
        assert np.array_equal(cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_COLOR), seen)
    else:
        assert seen.shape == (9, 6, 3)


def test_the_command(camvid: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Any) -> None:
    output = tmp_path_factory.mktemp("packed")
    run_tool("data", ["pack", "camvid", "--to", str(output), f"data.root={camvid}"])
    assert f"train on it with data.root={output}" in capsys.readouterr().out
    assert same_samples(CamVid(camvid, "val"), CamVid(output, "val"))


def test_wrong_input(camvid: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    data = CamVid(camvid, "train")
    with pytest.raises(ProtosegError, match="expected a folder outside that of the data"):
        pack([data], camvid, camvid / "packed")
    with pytest.raises(ProtosegError, match=rf"expected the files in {elsewhere}, got {camvid}"):
        pack([data], elsewhere, elsewhere.with_name("out"))
    bad = data.samples[1][1]
    assert bad is not None
    bad.write_bytes(b"x")
    with pytest.raises(ProtosegError, match=rf"image {bad}: expected a complete image file"):
        pack([data], camvid, elsewhere / "out")
    for name in ("streets", "streets_day_to_dusk"):
        with pytest.raises(SystemExit):
            run_tool("data", ["pack", name, "--to", str(elsewhere)])
        assert "expected data with one data.root" in capsys.readouterr().err
