"""Annotation files become the label maps that the forms' own decoders make of them, and bad ones are said."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from protoseg.cli.main import COMMANDS, run_tool
from protoseg.data import CITYSCAPES, read_class_file
from protoseg.data.class_file import MaskReading
from protoseg.data.export import WRITERS, convert, write_form
from protoseg.data.label_spaces import file_ids
from protoseg.data.own import LabelledFolder
from protoseg.data.polygons import FORMS
from protoseg.data.public import Cityscapes
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.data.test_train_every_dataset import SMALL as SMALL_RUN

OPTIONS = COMMANDS["data"]["commands"]["convert"]["options"]
W, H = 40, 30
BIG = [[2.3, 2.7], [35.2, 4.1], [30.6, 27.4], [5.5, 22.2]]
SMALL = [[10.5, 8.2], [20.1, 9.9], [14.7, 18.3]]


def flat(points: list) -> list:
    return [n for point in points for n in point]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in/images").mkdir(parents=True)
    Image.new("RGB", (W, H), (9, 9, 9)).save(tmp_path / "in/images/a.png")
    return tmp_path


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def made(root: Path, *inputs: Path, **options: object) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """The mask, the classes, and how often what was left out."""
    _, names, _, left_out = convert(inputs, root / "out", root / "in/images", **options)  # type: ignore[arg-type]
    said = {reason: len(places) for reason, places in left_out.items()}
    return np.array(Image.open(root / "out/masks/a.png")), names, said


def stack(*layers: np.ndarray) -> np.ndarray:
    label = np.zeros((H, W), np.uint8)
    for value, layer in enumerate(layers, 1):
        label[layer > 0] = value
    return label


def instances(*segmentations: object, size: tuple[int, int] = (W, H), name: str = "a.png", category: int = 0) -> dict:
    return {
        "images": [{"id": 7, "file_name": name, "width": size[0], "height": size[1]}],
        "categories": [{"id": 3, "name": "big"}, {"id": 9, "name": "small"}],
        "annotations": [
            {"id": i + 1, "image_id": 7, "category_id": category or (3, 9)[i % 2], "segmentation": s, "iscrowd": 0}
            for i, s in enumerate(segmentations)
        ],
    }


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["polygon", "runs", "packed runs"])
def test_coco(root: Path, kind: str, reverse: bool) -> None:
    runs = coco_mask.frPyObjects([flat(SMALL)], H, W)[0]
    if kind == "runs":
        pixels = coco_mask.decode(runs).ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [2]]))).tolist()
        counts = np.diff([0, *edges]).tolist()
    else:
        counts = runs["counts"].decode()
    content = instances([flat(BIG)], [flat(SMALL)] if kind == "polygon" else {"size": [H, W], "counts": counts})
    if reverse:  # the smaller one is on top, wherever it stands
        content["annotations"].reverse()
    path = written(root / "in/coco.json", content)
    label, names, said = made(root, path)
    reference = COCO(str(path))
    assert np.array_equal(label, stack(*(reference.annToMask(reference.anns[i]) for i in (1, 2))))
    assert (names, said) == (["background", "big", "small"], {})


def pillow(points: list) -> np.ndarray:
    image = Image.new("L", (W, H))
    ImageDraw.Draw(image).polygon([*map(tuple, points)], fill=1, outline=1)
    return np.array(image)


def opencv(*rings: object) -> np.ndarray:
    return cv2.fillPoly(np.zeros((H, W), np.uint8), [np.int32(ring) for ring in rings], 1)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_labelme(root: Path) -> None:
    """Later on top; imagePath leads elsewhere, as LabelMe writes it."""
    blob = base64.b64encode(png(np.full((4, 5), 255, np.uint8))).decode()
    shapes = [
        {"label": "small", "shape_type": "polygon", "points": SMALL},
        {"label": "big", "shape_type": "polygon", "points": BIG},
        {"label": "tiny", "shape_type": "mask", "points": [[3, 4], [7, 7]], "mask": blob},
        {"label": "__ignore__", "shape_type": "rectangle", "points": [[30, 20], [38, 28]]},
        {"label": "_background_", "shape_type": "rectangle", "points": [[1, 26], [2, 25]]},
        {"label": "tiny", "shape_type": "rectangle", "points": [[1, 1], [2, 1], [2, 2], [1, 2]]},
        {"label": "big", "shape_type": "line", "points": [[0, 0], [1, 1]]},
    ]
    content = {"imagePath": "..\\photos\\a.png", "imageWidth": W, "imageHeight": H, "shapes": shapes}
    written(root / "in/a.json", content)
    written(root / "in/._a.json", "what macOS leaves beside it")
    label, names, said = made(root, root / "in")
    expected = np.where(pillow(BIG), 1, np.where(pillow(SMALL), 2, 0))
    expected[4:8, 3:8] = 3
    expected[20:29, 30:39] = 255
    expected[25:27, 1:3] = 0
    expected[1:3, 1:3] = 3
    assert np.array_equal(label, expected)
    assert names == ["background", "big", "small", "tiny"]
    assert said == {"shapes of the kind 'line', which have no area": 1}


CVAT = '<annotations><image name="a.png" width="40" height="30">{}</image></annotations>'


def test_cvat(root: Path) -> None:
    """z_order decides; filled as COCO's polygons; what is broken in one shape costs that shape alone."""
    big, small = (";".join(f"{x},{y}" for x, y in points) for points in (BIG, SMALL))
    text = f"""<polygon label="small" points="{small}" z_order="1"/><polygon label="big" points="{big}" z_order="0"/>
      <mask label="tiny" left="3" top="4" width="3" height="2" rle="1, 4, 1" z_order="2"/>
      <box label="small" xtl="30" ytl="1" xbr="33.2" ybr="4"/><points label="big" points="1,1"/>
      <polygon label="big" points="1,1;x,2;3,3"/><mask label="big" left="0" top="0" width="2" height="2" rle="9,-5"/>
      <mask label="big" left="0" top="0" width="99999999" height="99999999" rle="9999999800000001"/>
      <box label="big" xtl="1" ytl="1" xbr="9" ybr="9" rotation="20"/>"""
    label, _, said = made(root, written(root / "in/x.xml", CVAT.format(text)))
    box = [30, 1, 33.2, 1, 33.2, 4, 30, 4]
    reference = [coco_mask.decode(coco_mask.frPyObjects([p], H, W)[0]) for p in (flat(BIG), flat(SMALL), box)]
    expected = np.where(reference[1] | reference[2], 2, reference[0])
    expected[4, 4:6] = expected[5, 3:5] = 3
    assert np.array_equal(label, expected)
    assert said == {
        "shapes of the kind 'points', which have no area": 1,
        "shapes that cannot be read": 1,
        "run lengths that do not fill their size": 1,
        "bitmaps that reach outside the image": 1,
        "boxes that are turned": 1,
    }


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_yolo(root: Path, layout: str) -> None:
    """Splits keep apart images of one name, and lie in the result as ``data=folder`` reads them."""
    written(root / "yolo/data.yaml", "names: {0: no, 1: big}")  # YAML's false
    lines = [f"{i} " + " ".join(f"{x / W} {y / H}" for x, y in points) for i, points in enumerate((SMALL, BIG))]
    for split, text in (("train", "\n".join([*lines, "0 .5 .5 .1 .1", "7 0 0 0 1 1 1", "1"])), ("val", "")):
        place = root / "yolo" / layout.format(split)
        place.mkdir(parents=True)
        Image.new("RGB", (W, H), (9, 9, 9)).save(place / "a.jpg")
        written(root / "yolo" / layout.format(split).replace("images", "labels") / "a.txt", text)
    form, names, count, left_out = convert([root / "yolo"], root / "out")
    assert (form, names, count) == ("yolo", ["background", "no", "big"], 2)
    said = {reason: len(places) for reason, places in left_out.items()}
    assert said == {"shapes of fewer than three points": 2, "shapes of no class that is listed": 1}
    datasets = [LabelledFolder(root / "out", root / "out/classes.yaml", split) for split in ("train", "val")]
    assert datasets[0].label_space.classes == ("background", "no", "big")
    expected = np.where(opencv(SMALL), 1, 2 * opencv(BIG))
    assert [len(dataset) for dataset in datasets] == [1, 1]
    assert np.array_equal(datasets[0][0][1], expected)
    assert not datasets[1][0][1].any()


def test_supervisely(root: Path) -> None:
    """As its SDK draws: points rounded, the edge of a hole belongs to the hole."""
    written(root / "in/meta.json", {"classes": [{"title": "big"}, {"title": "small"}]})
    pixels = np.zeros((5, 6, 4), np.uint8)
    pixels[1:4, 2:5, 3] = 255
    packed = base64.b64encode(zlib.compress(png(pixels))).decode()
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000))).decode()
    objects = [
        {"classTitle": "big", "geometryType": "polygon", "points": {"exterior": BIG, "interior": [SMALL]}},
        {"classTitle": "small", "geometryType": "bitmap", "bitmap": {"data": packed, "origin": [20, 21]}},
        {"classTitle": "small", "geometryType": "bitmap", "bitmap": {"data": packed, "origin": [36, 21]}},
        {"classTitle": "small", "geometryType": "bitmap", "bitmap": {"data": bomb, "origin": [0, 0]}},
        {
            "classTitle": "small",
            "geometryType": "rectangle",
            "points": {"exterior": [[1, 26], [3, 28]], "interior": []},
        },
    ]
    written(root / "in/ds/ann/a.png.json", {"size": {"height": H, "width": W}, "objects": objects})
    label, _, said = made(root, root / "in")
    expected = opencv(np.rint(BIG))
    cv2.fillPoly(expected, [np.int32(np.rint(SMALL))], 0)
    expected[22:25, 22:25] = expected[26:29, 1:4] = 2
    assert np.array_equal(label, expected)
    assert said == {"bitmaps that reach outside the image": 1, "shapes that cannot be read": 1}


@pytest.mark.parametrize("on", [1, 255])
def test_class_masks(root: Path, on: int) -> None:
    for name, points in (("big", BIG), ("small", SMALL)):
        (root / f"in/masks/{name}").mkdir(parents=True)
        Image.fromarray(pillow(points) * np.uint8(on)).save(root / f"in/masks/{name}/a.png")
    label, _, _ = made(root, root / "in/masks")
    assert np.array_equal(label, stack(pillow(BIG), pillow(SMALL)))


@pytest.mark.parametrize(
    ("mask", "said"), [(np.uint8([[0, 1, 255]]), "expected one value"), (np.uint8([[0, 1]]), "as its image")]
)
def test_an_image_with_a_doubtful_mask_is_left_out(root: Path, mask: np.ndarray, said: str) -> None:
    (root / "in/masks/big").mkdir(parents=True)
    Image.fromarray(mask).save(root / "in/masks/big/a.png")
    with pytest.raises(ProtosegError, match=said):
        made(root, root / "in/masks")


@pytest.mark.parametrize("kind", WRITERS)
def test_out(root: Path, kind: str) -> None:
    """cityscapesScripts draws our polygons to the very label map, noise and holes included; panoptic comes back."""
    random = np.random.default_rng(0)
    label = np.kron(random.integers(0, 19, (6, 8)), np.ones((8, 8), int))
    label = np.where(random.random(label.shape) < 0.2, random.integers(0, 19, label.shape), label).astype(np.uint8)
    label[random.random(label.shape) < 0.05] = 255
    (root / "f/masks/val/ulm").mkdir(parents=True)
    Image.fromarray(label).save(root / "f/masks/val/ulm/a_leftImg8bit.png")
    names = [*CITYSCAPES.classes]
    written(root / "f/classes.yaml", json.dumps({"classes": names, "ids": {n: i for i, n in enumerate(names)}}))
    if kind == "cityscapes":  # masks alone, their classes given
        run_tool("data", ["convert", str(root / "f/masks"), str(root / "to/gtFine"), "--to", kind,
                          "--classes", str(root / "f/classes.yaml")])  # fmt: skip
        start = root / "to/gtFine/val/ulm/a_gtFine"
        annotation = Annotation()
        annotation.fromJsonFile(f"{start}_polygons.json")
        ids = np.append(file_ids(Cityscapes.id_table, 19), np.zeros(237, np.uint8))[label]
        assert np.array_equal(createLabelImage(annotation, "ids"), ids)
        assert np.array_equal(Image.open(f"{start}_labelIds.png"), ids)
        (root / "to/leftImg8bit/val/ulm").mkdir(parents=True)
        Image.new("RGB", label.shape[::-1]).save(root / "to/leftImg8bit/val/ulm/a_leftImg8bit.png")
        again = Cityscapes(root / "to", "val")[0][1].numpy()
        assert np.array_equal(np.where(again < 0, 255, again), label)
    elif kind in ("coco", "labelme"):
        photo = root / "f/images/val/ulm/a_leftImg8bit.tif"
        photo.parent.mkdir(parents=True)
        Image.new("RGB", label.shape[::-1]).save(photo)
        assert write_form(root / "f", root / "to", kind) == 1
        assert "a_leftImg8bit.tif" in next((root / "to").rglob("*.json")).read_text()
        place = root / "to/coco.json" if kind == "coco" else root / "to"
        _, found, _, left_out = convert([place], root / "out", root / "f/images", kind, "void")
        ids = np.array([*map(names.index, found), *[255] * (256 - len(found))])
        assert np.array_equal(ids[np.array(Image.open(root / "out/masks/val/ulm/a_leftImg8bit.png"))], label)
        assert not left_out
    else:
        assert write_form(root / "f", root / "to", kind) == 1
        content = json.loads((root / "to/panoptic.json").read_text())
        rgb = np.array(Image.open(root / "to/panoptic" / content["annotations"][0]["file_name"])).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]  # panopticapi
        assert np.array_equal(ids, np.where(label == 255, 0, label + 1))
        areas = {segment["id"]: segment["area"] for segment in content["annotations"][0]["segments_info"]}
        assert areas == dict(enumerate(np.bincount(ids.ravel())[1:].tolist(), 1))
        Image.new("RGB", label.shape[::-1]).save(root / "in/images/a_leftImg8bit.png")
        convert([root / "to/panoptic.json"], root / "out", root / "in/images")
        assert np.array_equal(Image.open(root / "out/masks/a_leftImg8bit.png"), label)


BAD = {
    "shapes of fewer than three points": [[1, 1, 5, 5]],
    "shapes without a pixel inside the image": [[-30, -30, -5, -30, -5, -5]],
    "shapes that reach far outside the image": [[1, 1, 1e12, 1, 5, 5]],
    "shapes that cannot be read": [["x", 1, 2, 3, 4, 5]],
    "run lengths that do not fill their size": {"size": [H, W], "counts": [0, 10**12]},
    "run lengths of another size than the image": {"size": [10**6, 10**6], "counts": [0, 10**12]},
    "boxes without an outline": [],
}
MORE_BAD = [
    ("run lengths that do not fill their size", {"size": [H, W], "counts": [5, 5]}),  # pycocotools: random pixels
    ("run lengths that do not fill their size", {"size": [H, W], "counts": "8"}),
    ("shapes that cannot be read", {"size": [H, W], "counts": "o" * 99}),
    ("run lengths that do not fill their size", {"size": [H, W], "counts": [H * W + 9, -9]}),
    ("shapes that cannot be read", {"size": [H, W], "counts": "é"}),
    ("shapes that cannot be read", {"size": [H, W]}),
    ("shapes that cannot be read", [[10**400, 1, 2, 3, 4, 5]]),
    ("shapes that reach far outside the image", [[float("nan")] * 6]),
]


@pytest.mark.parametrize(("reason", "segmentation"), [*BAD.items(), *MORE_BAD])
def test_bad_shapes_are_counted(root: Path, reason: str, segmentation: object) -> None:
    label, _, said = made(root, written(root / "in/coco.json", instances([flat(BIG)], segmentation)))
    assert said == {reason: 1}
    assert set(np.unique(label)) == {0, 1}


def changed(**new: object) -> dict:
    content = instances([flat(BIG)])
    return content | {key: [content[key][0] | each for each in value] for key, value in new.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (instances([flat(BIG)], name="b.png"), "images that are missing"),
        (instances([flat(BIG)], size=(H, W)), "images of another size than the annotations say"),
        (instances([flat(BIG)], size=("40", [30])), "images of another size than the annotations say"),  # type: ignore[arg-type]
        ({"images": [], "annotations": [], "categories": []}, "no image in it"),
        ({"hello": 1}, "cannot be read as labelme"),
        ("{", "cannot be read as labelme"),
        ("[" * 100_000 + '"categories"', "cannot be read as coco"),
        ({"images": [{}], "annotations": [{}], "categories": []}, "cannot be read as coco .KeyError: 'id'"),
        (changed(categories=[{}, {"name": "other"}]), "an id that several categories or images have"),
        (changed(categories=[{"name": {"a": 1}}]), "cannot be read as coco .TypeError"),
        (changed(categories=[{"name": ""}]), "a class without a name"),
        (changed(categories=[{"name": "${oc.env:HOME}"}]), "a class without a name"),
        (changed(annotations=[{"image_id": 5}], images=[]), "images that are missing"),
    ],
)
def test_refused(root: Path, content: object, said: str) -> None:
    with pytest.raises(ProtosegError, match=said):
        made(root, written(root / "in/coco.json", content))
    assert not (root / "out").exists()


def test_several_files_of_one_form_and_of_two(root: Path) -> None:
    first = written(root / "in/1.json", instances([flat(BIG)]))
    other = instances([flat(SMALL)]) | {"categories": [{"id": 3, "name": "other"}]}
    Image.new("RGB", (W, H)).save(root / "in/images/b.png")
    other["images"][0]["file_name"] = "b.png"
    _, names, _ = made(root, first, written(root / "in/2.json", other))
    assert names == ["background", "big", "small", "other"]
    assert set(np.unique(Image.open(root / "out/masks/b.png"))) == {0, 3}
    labelme = written(root / "in/3.json", {"imagePath": "b.png", "shapes": []})
    with pytest.raises(ProtosegError, match=r"3\.json, which cannot be read as coco"):
        made(root, first, labelme)


def test_without_pycocotools(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoseg.types.find_spec", lambda name: None)
    with pytest.raises(ProtosegError, match=r"pip install 'protoseg\[coco\]'"):
        made(root, written(root / "in/coco.json", instances([flat(BIG)])))


def test_a_doctype_is_refused(root: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]>' + CVAT.format('<tag label="&c;"/>')
    with pytest.raises(ProtosegError, match="DOCTYPE"):
        made(root, written(root / "in/x.xml", bomb))


def test_names_never_lead_outside(root: Path) -> None:
    """Neither of images nor of panoptic PNGs."""
    before = {*root.rglob("*")}
    path = written(root / "in/coco.json", instances([flat(BIG)], name="/../../../a.png"))
    made(root, path)
    new = {*root.rglob("*")} - before - {path}
    assert all(root / "out" in (file, *file.parents) for file in new)
    Image.fromarray(np.full((H, W, 3), (3, 0, 0), np.uint8)).save(root / "secret.png")
    content = instances() | {"annotations": [{"image_id": 7, "file_name": "../../secret.png",
                                              "segments_info": [{"id": 3, "category_id": 3}]}]}  # fmt: skip
    with pytest.raises(ProtosegError, match=r"coco/secret\.png"):
        convert([written(root / "in/coco.json", content)], root / "other", root / "in/images")


NAMES = ["a\nb", "[red]c[/]", "$HOME", "no", "- x: {", "é", "x" * 300]


def test_names_of_classes_are_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = instances([flat(BIG)]) | {"categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)]}
    path = written(root / "in/coco.json", content)
    run_tool("data", ["convert", str(path), str(root / "out"), "--images", str(root / "in/images")])
    assert "a\\nb, [red]c[/], $HOME" in capsys.readouterr().out
    assert read_class_file(root / "out/classes.yaml").label_space.classes == ("background", *NAMES)


@pytest.mark.parametrize(("said", "top"), [((H, W), "as shown"), ((W, H), "as stored")])
def test_exif(root: Path, said: tuple[int, int], top: str) -> None:
    """The image is stored lying, and EXIF turns it; the mask is made as it is shown, whichever was annotated."""
    image, exif = Image.new("RGB", (W, H), (9, 9, 9)), Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    image.save(root / "in/images/a.png", exif=exif)
    label, _, _ = made(root, written(root / "in/coco.json", instances([[0, 0, 10, 0, 10, 5, 0, 5]], size=said)))
    assert label.shape == (W, H)
    expected = np.zeros((W, H), np.uint8)
    if top == "as shown":
        expected[:5, :10] = 1
    else:
        expected[:10, -5:] = 1
    assert np.array_equal(label, expected)


@pytest.mark.parametrize(
    ("words", "values", "names"),
    [
        ([], {0, 1, 2}, ("background", "big", "small")),
        (["--rest", "void"], {0, 1, 255}, ("big", "small")),
        (["--rest", "small"], {0, 1}, ("big", "small")),
        (["--form", "coco"], {0, 1, 2}, ("background", "big", "small")),
    ],
)
def test_command_line(
    root: Path, words: list[str], values: set[int], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(root / "in/coco.json", instances([flat(BIG)], [flat(SMALL)], [[1, 1]]))
    words = ["convert", str(path), str(root / "out"), "--images", str(root / "in/images"), *words]
    run_tool("data", words)
    printed = capsys.readouterr().out
    assert f"1 images, read as coco; {len(names)} classes: {', '.join(names)}" in printed
    assert "left out: 1 x shapes of fewer than three points (first: a.png)" in printed
    assert f"Train with data=folder data.root={root / 'out'}" in printed
    assert {*np.unique(Image.open(root / "out/masks/a.png")).tolist()} == values
    with pytest.raises(SystemExit):
        run_tool("data", words)
    assert "expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("rest", ["background", "void"])
def test_a_class_of_its_own_is_read_back(root: Path, rest: str) -> None:
    """0 and 1, 0 and 255: what is void is no class, and 1 not 255."""
    content = instances([flat(BIG)]) | {"categories": [{"id": 3, "name": "big"}]}
    label, _, _ = made(root, written(root / "in/coco.json", content), rest=rest)
    file = read_class_file(root / "out/classes.yaml")
    mask = root / "out/masks/a.png"
    assert np.array_equal(MaskReading([mask], file).label(mask, file.table, file.colors), label)
    assert {*np.unique(label)} == ({0, 1} if rest == "background" else {0, 255})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--form", "labelme"], "cannot be read as labelme"),
        (["--to", "cityscapes", "--rest", "void"], "leave out the others"),
        (["--classes", "x"], "leave out the others"),
        (["--to", "cityscapes"], "classes.yaml: expected"),
    ],
)
def test_wrong_options(root: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(root / "in/coco.json", instances([flat(BIG)]))
    with pytest.raises(SystemExit):
        run_tool("data", ["convert", str(path), str(root / "out"), *words])
    assert said in capsys.readouterr().err


def test_the_command_offers_the_forms_there_are() -> None:
    assert ([*FORMS], [*WRITERS]) == (OPTIONS["--form"]["choices"], OPTIONS["--to"]["choices"])


def test_a_result_is_trained_on(root: Path, configure: Callable[..., DictConfig]) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": W, "height": H} for i in range(6)]
    for image in images:
        Image.new("RGB", (W, H), (9, 9, 9)).save(root / "in/images" / str(image["file_name"]))
    content = instances(*[[flat(BIG)], [flat(SMALL)]] * 6)
    for i, each in enumerate(content["annotations"]):
        each["image_id"] = i // 2
    path = written(root / "in/coco.json", content | {"images": images})
    convert([path], root / "out", root / "in/images")
    run_training(configure("train", *SMALL_RUN, "data=folder", f"data.root={root / 'out'}"))
    run_tool("data", ["check", "folder", f"data.root={root / 'out'}"])
