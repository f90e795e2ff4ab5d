"""What the pixels of one's own masks mean: every form of mask is read right or refused.

The files are written and decoded here with zlib and numpy alone, so that no image library has a say in what is right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from protoseg.cli.main import run_tool
from protoseg.data import LabelledFolder
from protoseg.data.class_file import _used_in
from protoseg.data.decoding import largest_deep_value
from protoseg.data.files import read_image
from protoseg.data.label_spaces import mapping_table
from protoseg.data.statistics import class_statistics
from protoseg.types import LabelSpace, ProtosegError

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
V = 255  # ignored


def write_png(
    path: Path,
    samples: object,
    kind: int = GREY,
    depth: int = 8,
    palette: Sequence[Sequence[int]] = (),
    alpha: bytes = b"",
) -> None:
    """Samples ``h w`` or ``h w channels`` as a PNG; https://www.w3.org/TR/png-3."""
    pixels = np.asarray(samples, np.int64)
    height, width = pixels.shape[:2]
    bits = (pixels.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    chunks += [(b"PLTE", bytes(np.ravel(palette).tolist()))] if len(palette) else []
    chunks += [(b"tRNS", alpha)] if alpha else []
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    made = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))


def samples_of(path: Path) -> np.ndarray:
    """The samples of such a PNG, ``h w channels``."""
    data = path.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    body = data[data.index(b"IDAT") + 4 :]
    rows = np.frombuffer(zlib.decompressobj().decompress(body), np.uint8).reshape(height, -1)[:, 1:]
    count = width * CHANNELS[kind]
    bits = np.unpackbits(rows, axis=1)[:, : count * depth].reshape(height, count, depth)
    return (bits.astype(np.int64) << np.arange(depth)[::-1]).sum(-1).reshape(height, width, -1)


def folder(root: Path, classes: str, *masks: dict[str, Any]) -> Path:
    """Images and masks, and a file of classes; a mask is the arguments of ``write_png``."""
    for number, options in enumerate(masks):
        write_png(root / "masks" / f"{number}.png", **options)
        height, width = np.shape(options["samples"])[:2]
        write_png(root / "images" / f"{number}.png", np.full((height, width, 3), 40 * number % 256), RGB)
    (root / "classes.yaml").write_text(classes, encoding="utf-8")
    return root


def both(root: Path) -> list[LabelledFolder]:
    return [LabelledFolder(root, root / "classes.yaml", split) for split in ("train", "val")]


def labels(root: Path) -> dict[str, np.ndarray]:
    return {data.samples[i][0].name: data.read_label(i) for data in both(root) for i in range(len(data))}


def mask(*row: object, kind: int = GREY, **options: object) -> dict[str, Any]:
    """Four rows of the same pixels."""
    return {"samples": [row] * 4, "kind": kind, **options}


def palette(*row: int, **options: object) -> dict[str, Any]:
    """Indices of blue, red, green and a dark grey: not in the order of the classes a, b, c."""
    return mask(*row, kind=PALETTE, **{"palette": [BLUE, RED, GREEN, (9, 9, 9)], **options})


BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
NAMES = "classes: [background, lesion]"
GREYS = "classes: {background: [0, 0, 0], lesion: [255, 255, 255]}"
COLORS = "classes: {background: [0, 0, 0], lesion: [255, 0, 0]}"
TURNED = "classes: {cell: [255, 255, 255], rest: [0, 0, 0]}"
THREE = "classes: {a: [0, 0, 0], b: [128, 128, 128], c: [255, 255, 255]}"
ABC = "classes: {a: [255, 0, 0], b: [0, 255, 0], c: [0, 0, 255]}"

GREY_PALETTE = [(i, i, i) for i in range(4)]

# File of classes, masks, and the label that each value (of colours: the tuple) stands for.
READ = {
    "0/255, black and white": (GREYS, [mask(0, 255)], {0: 0, 255: 1}),
    "0/255, colours in another order than ids": (TURNED, [mask(0, 255)], {0: 1, 255: 0}),
    "0/255, class colours of another kind": (COLORS, [mask(0, 255)], {0: 0, 255: 1}),
    "0/255, no colours": (NAMES, [mask(0, 255)], {0: 0, 255: 1}),
    "0/255 in 16 bits": (NAMES, [mask(0, 255, depth=16)], {0: 0, 255: 1}),
    "0/255/65535 with void": (f"{NAMES}\nvoid: [255]", [mask(0, 255, 65535, depth=16)], {0: 0, 255: V, 65535: 1}),
    "0/65535": (NAMES, [mask(0, 65535, depth=16)], {0: 0, 65535: 1}),
    "0/255 and void": (f"{COLORS}\nvoid: [7]", [mask(0, 7, 255)], {0: 0, 7: V, 255: 1}),
    "0/128/255": (THREE, [mask(0, 128, 255)], {0: 0, 128: 1, 255: 2}),
    "0/128/255 by ids": (f"{ABC}\nids: {{a: 0, b: 128, c: 255}}", [mask(0, 128, 255)], {0: 0, 128: 1, 255: 2}),
    "255 void beside 0 and 1": (GREYS, [mask(0, 1, 255)], {0: 0, 1: 1, 255: V}),
    "255 void in a mask of its own": (COLORS, [mask(0, 1, 255), mask(0, 255)], {0: 0, 1: 1, 255: V}),
    "255 void by the file": (f"{GREYS}\nvoid: [255]", [mask(0, 255)], {0: 0, 255: V}),
    "255 an id": (f"{COLORS}\nids: {{background: 0, lesion: 255}}", [mask(0, 255)], {0: 0, 255: 1}),
    "255 an id, 0 void": (
        f"{NAMES}\nids: {{background: 1, lesion: 255}}\nvoid: [0]",
        [mask(0, 1, 255)],
        {0: V, 1: 0, 255: 1},
    ),
    "1 bit": (COLORS, [mask(0, 1, depth=1)], {0: 0, 1: 1}),
    "1 bit by colour": (TURNED, [mask(0, 1, depth=1)], {0: 1, 1: 0}),
    "2 bits": ("classes: [a, b, c, d]", [mask(0, 1, 2, 3, depth=2)], {0: 0, 1: 1, 2: 2, 3: 3}),
    "4 bits": ("classes: [a, b, c]\nvoid: [15]", [mask(0, 1, 2, 15, depth=4)], {0: 0, 1: 1, 2: 2, 15: V}),
    "4 bits by colour": (GREYS, [mask(0, 15, depth=4)], {0: 0, 15: 1}),
    "65535 void": (NAMES, [mask(0, 1, 65535, depth=16)], {0: 0, 1: 1, 65535: V}),
    "ids to 65534": (
        "classes: [a, b]\nids: {a: 65534, b: [300, 7]}",
        [mask(7, 300, 65534, depth=16)],
        {7: 1, 300: 1, 65534: 0},
    ),
    "several ids for a class": ("classes: [a, b]\nids: {a: [0, 2], b: 1}", [mask(0, 1, 2)], {0: 0, 1: 1, 2: 0}),
    "palette by colour": (ABC, [palette(0, 1, 2)], {0: 2, 1: 0, 2: 1}),
    "palette of 2 bits by colour": (ABC, [palette(0, 1, 2, depth=2)], {0: 2, 1: 0, 2: 1}),
    "palette with void": (f"{ABC}\nvoid: [[9, 9, 9]]", [palette(0, 1, 3)], {0: 2, 1: 0, 3: V}),
    "palette of other colours": ("classes: [a, b, c]", [palette(0, 1, 2)], {0: 0, 1: 1, 2: 2}),
    "palette with a clear entry": (ABC, [palette(1, 3, alpha=b"\xff\xff\xff\0")], {1: 0, 3: V}),
    "ids in R, G and B": (
        ABC,
        [mask(*[(i,) * 3 for i in (0, 1, 2, 255)], kind=RGB)],
        {BLACK: 0, (1, 1, 1): 1, (2, 2, 2): 2, WHITE: V},
    ),
    "0/255 in R, G and B": (COLORS, [mask(BLACK, WHITE, kind=RGB)], {BLACK: 0, WHITE: 1}),
    "colours": (ABC, [mask(RED, BLUE, kind=RGB)], {RED: 0, BLUE: 2}),
    "transparent colours": (
        ABC,
        [mask((*RED, 255), (*BLUE, 90), (*BLACK, 0), kind=RGBA)],
        {(*RED, 255): 0, (*BLUE, 90): 2, (*BLACK, 0): V},
    ),
    "transparent ids": (
        f"{ABC}\nids: {{a: 1, b: 2, c: 3}}",
        [mask((1, 255), (3, 255), (0, 0), kind=GREY_ALPHA)],
        {(1, 255): 0, (3, 255): 2, (0, 0): V},
    ),
    "transparent as said": (
        f"{ABC}\nvoid: [transparent]",
        [mask((1, 255), (2, 255), (0, 0), kind=GREY_ALPHA)],
        {(1, 255): 1, (2, 255): 2, (0, 0): V},
    ),
    "a transparent grey level": (
        f"{ABC}\nvoid: [transparent]",
        [mask(0, 1, 2, alpha=b"\0\2"), mask(0, 1, 3, depth=2, alpha=b"\0\3"), mask(0, 1, 2, depth=16, alpha=b"\0\2")],
        {0: 0, 1: 1, 2: V, 3: V},
    ),
    "a palette with a clear entry, as ids": (
        f"{NAMES}\nvoid: [transparent]",
        [palette(0, 1, alpha=b"\xff\0")],
        {0: 0, 1: V},
    ),
    "a palette with an entry that is clear for the eye": (NAMES, [palette(0, 1, alpha=b"\xff\0")], {0: 0, 1: 1}),
    "a transparent bit": (f"{NAMES}\nvoid: [transparent]", [mask(0, 1, depth=1, alpha=b"\0\1")], {0: 0, 1: V}),
    "a palette of black and white": (GREYS, [palette(0, 1, palette=[BLACK, WHITE])], {0: 0, 1: 1}),
    "a palette of grey levels as its numbers": ("classes: [a, b]", [palette(0, 1, palette=GREY_PALETTE)], {0: 0, 1: 1}),
    "a palette of grey levels that are no ids": (
        "classes: [a, b]",
        [palette(0, 1, palette=[(i, i, i) for i in (0, 85, 170)])],
        {0: 0, 1: 1},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_every_pixel_is_read_right(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    classes, masks, meaning = READ[name]
    root = folder(tmp_path, classes, *masks * 4)
    for file, label in labels(root).items():
        samples = samples_of(root / "masks" / file).tolist()
        expected = [[meaning[tuple(s) if len(s) > 1 else s[0]] for s in row] for row in samples]
        assert label.tolist() == expected
    run_tool("data", ["check", "folder", f"data.root={root}"])
    assert "masks are read as: " in capsys.readouterr().out


def test_more_classes_than_bytes_have_numbers(tmp_path: Path) -> None:
    names = ", ".join(f"c{i}" for i in range(400))
    root = folder(tmp_path, f"classes: [{names}]", *[mask(0, 255, 399, 65535, depth=16)] * 2, mask(0, 255))
    found = labels(root)
    assert found["0.png"][0].tolist() == [0, 255, 399, 65535]
    assert found["2.png"][0].tolist() == [0, 255]


def test_masks_of_several_kinds_are_each_read_in_their_way(tmp_path: Path) -> None:
    found = labels(
        folder(tmp_path, ABC, mask(0, 1, 2), mask(RED, BLUE, kind=RGB), palette(0, 1, 2), mask(0, 1, depth=1))
    )
    assert [found[f"{i}.png"][0].tolist() for i in range(4)] == [[0, 1, 2], [0, 2], [2, 0, 1], [0, 1]]


REFUSED = {
    "0/1 beside 0/255": (
        COLORS,
        [mask(0, 1), mask(0, 255)],
        r"255 \(e\.g\. in .*1\.png\) never lies beside 1: if 255 is void",
    ),
    "0/1 beside white": (GREYS, [mask(0, 1), mask(0, 255)], r"got colours in .*\d\.png and ids in .*\d\.png"),
    "palettes of two sorts": (
        ABC,
        [palette(0, 1), palette(0, 2, palette=[(1, 1, 1)] * 3)],
        r"in all palette masks .*got colours",
    ),
    "black is the second class": (
        "classes: {lesion: [255, 0, 0], rest: [0, 0, 0]}",
        [mask(0, 255)],
        r"255 .* is no class: if 255",
    ),
    "ids of no mask": (
        f"{NAMES}\nids: {{background: 0, lesion: 1}}",
        [mask(0, 255)],
        r"got 0, 255, of which 255 .*lesion: 255",
    ),
    "one of many classes and 255": (ABC, [mask(0, 255)], r"got 0, 255, of which 255"),
    "0/128/255 of two classes": (COLORS, [mask(0, 128, 255)], r"expected class ids 0 to 1, 255, got 128"),
    "an id beyond the classes": (ABC, [mask(0, 1, 3)], r"expected class ids 0 to 2, 255, got 3"),
    "a colour of no class": (ABC, [mask(RED, (1, 2, 3), kind=RGB)], r"got 1 other\(s\) on 4 pixels: \(1, 2, 3\)"),
    "a palette colour of no class": (
        f"{ABC}\nids: {{a: 7, b: 8, c: 9}}",
        [palette(0, 1), palette(0, 3)],
        r"4 pixels: \(9, 9, 9\)",
    ),
    "a clear background": (
        COLORS,
        [mask((*RED, 255), (*BLACK, 0), kind=RGBA)],
        r"got 4 transparent ones.*: add transparent to void",
    ),
    "255 and 65535": (NAMES, [mask(0, 255, 65535, depth=16)], r"got 0, 255, 65535, of which 65535 .* is no class"),
    "colours of 16 bits": (ABC, [mask(RED, BLUE, kind=RGB, depth=16)], r"RGB colours of 8 bits, got RGB of other bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_wrongly_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    classes, masks, message = REFUSED[name]
    root = folder(tmp_path, classes, *masks * 3)
    with pytest.raises(ProtosegError, match=message):
        labels(root)
    with pytest.raises(SystemExit):
        run_tool("data", ["check", "folder", f"data.root={root}"])


def test_clear_pixels_that_become_void_are_counted_anew(tmp_path: Path) -> None:
    root, counts = folder(tmp_path, NAMES, *[palette(0, 1, alpha=b"\xff\0")] * 4), []
    for void in ("", "\nvoid: [transparent]"):
        (root / "classes.yaml").write_text(NAMES + void, encoding="utf-8")  # the masks stay as they are
        train = LabelledFolder(root, root / "classes.yaml", val_share=0.25)
        counts.append(class_statistics(train).counts.sum(0).tolist())
    assert counts[0][0] == counts[1][0] > 0
    assert counts[0][1] > counts[1][1] == 0


def test_splits_and_samples_agree(tmp_path: Path) -> None:
    """A split whose masks alone could be read otherwise is read as the others are."""
    root = folder(tmp_path, COLORS, mask(0, 1, 255), mask(0, 255), mask(0, 255))
    (root / "train.txt").write_text("0\n1")
    (root / "val.txt").write_text("2")
    assert labels(root)["2.png"][0].tolist() == [0, V]


def test_a_mask_that_was_not_looked_at_is_not_read_by_chance(tmp_path: Path) -> None:
    root = folder(tmp_path, GREYS, *[mask(0, 1)] * 4)
    data = both(root)[0]
    path = data.samples[0][1]
    assert path is not None
    write_png(path, **mask(0, 255))
    with pytest.raises(ProtosegError, match=rf"expected ids in all grey masks .*, got colours in {path} and ids in"):
        data.read_label(0)


@pytest.mark.parametrize("stray", [(0, 255), (255, 255)])
def test_a_stray_mask_beyond_those_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: tuple[int, int]
) -> None:
    monkeypatch.setattr("protoseg.data.class_file._SAMPLE", 2)
    root = folder(tmp_path, "classes: [background, lesion]", *[mask(0, 1)] * 3, mask(*stray), mask(0, 1))
    with pytest.raises(ProtosegError, match=r"got 0, 1, 255, of which 255 \(e\.g\. in .*/3\.png\) never lies beside 1"):
        labels(root)
    root = folder(tmp_path, "classes: [background, lesion]", mask(0, 255, 1), *[mask(0, 1)] * 2, mask(*stray))
    monkeypatch.setattr("protoseg.data.class_file._SAMPLE", 1)
    assert labels(root)["3.png"][0].tolist() == [0 if i == 0 else V for i in stray]


def test_empty_masks_say_nothing_and_all_others_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoseg.data.class_file._SAMPLE", 2)
    root = folder(tmp_path, GREYS, mask(0, 0), mask(0, 0), mask(0, 255), mask(0, 0))
    assert labels(root)["2.png"][0].tolist() == [0, 1]
    before = _used_in.cache_info().misses
    both(root)
    assert _used_in.cache_info().misses == before


def test_a_packed_copy_is_read_the_same(tmp_path: Path) -> None:
    masks = mask(0, 3, depth=2), mask(0, 1, depth=1), mask((1, 255), (2, 255), kind=GREY_ALPHA), mask(0, 1)
    root = folder(tmp_path / "a", "classes: [a, b, c, d]", *masks)
    run_tool("data", ["pack", "folder", f"data.root={root}", "--to", str(tmp_path / "b")])
    before, after = labels(root), labels(tmp_path / "b")
    assert all(np.array_equal(after[name], label) for name, label in before.items())
    assert before["0.png"][0].tolist() == [0, 3]


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_images_of_16_bits(tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    root, top = folder(tmp_path, NAMES, *[mask(0, 1)] * 4), (1 << bits) - 1
    values = np.array([[0, top // 3], [top // 2, top]])
    for path in (root / "images").iterdir():
        write_png(path, np.repeat(values, 2, 0), depth=16)
    run_tool("data", ["check", "folder", f"data.root={root}"])
    told = f"values up to {top} (e.g. " in (shown := capsys.readouterr().out)
    assert told == (bits < 16) == (f"set data.dataset.image_range=[0,{top}]" in shown)
    ranged = LabelledFolder(root, root / "classes.yaml", image_range=[0, top])
    run_tool("data", ["check", "folder", f"data.root={root}", f"data.dataset.image_range=[0,{top}]"])
    assert "image_range" not in capsys.readouterr().out
    assert ranged.read(0)[0][..., 0].tolist() == np.repeat(np.round(values * 255 / top), 2, 0).tolist()
    plain = LabelledFolder(root, root / "classes.yaml")
    assert plain.read(0)[0][..., 2].tolist() == np.repeat(values >> 8, 2, 0).tolist()
    with pytest.raises(ProtosegError, match=r"image_range: expected \[low, high\].*got \[9, 9\]"):
        LabelledFolder(root, root / "classes.yaml", image_range=[9, 9])


def test_images_of_16_bits_in_a_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [4095, 65535]], np.uint16)
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    assert read_image(path, value_range=(0, 4095))[..., 1].tolist() == [[0, 62], [255, 255]]
    assert read_image(path)[..., 1].tolist() == (values >> 8).tolist()
    assert largest_deep_value(path) == 65535
    assert cv2.imwrite(str(path), np.dstack([values] * 3))
    assert read_image(path, value_range=(0, 4095))[..., 2].tolist() == [[0, 62], [255, 255]]
    assert largest_deep_value(path) == 65535
    assert cv2.imwrite(str(path), np.array([[[300, 200, 100]]], np.uint16))  # OpenCV takes blue first
    assert read_image(path, value_range=(0, 510)).tolist() == [[[50, 100, 150]]]


def test_classes_may_be_mapped(tmp_path: Path) -> None:
    root = folder(tmp_path, ABC, mask(0, 1, 2), mask(RED, BLUE, kind=RGB), mask(0, 1, 2))
    target = LabelSpace("target", ("c", "ab"), ((0, 0, 0), (1, 1, 1)))
    for data in both(root):
        data.map_classes(target, mapping_table(data.label_space, target, {"a": "ab", "b": "ab", "c": "c"}))
        for index, (image, _) in enumerate(data.samples):
            assert data.read_label(index)[0].tolist() == ([1, 0] if image.name == "1.png" else [1, 1, 0])
