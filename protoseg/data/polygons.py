"""The forms of annotation files: how each is read, and its shapes filled as the program fills them whose form it is."""

import json
import posixpath
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from protoseg.data.decoding import FAILURES, open_picture
from protoseg.data.files import read_image, read_mask
from protoseg.data.pairing import list_images, stem_in
from protoseg.types import ProtosegError, Size

try:
    from pycocotools import mask as coco_mask
except ImportError:  # an extra
    coco_mask = None

# What other content than the form's gives.
FOREIGN = (*FAILURES, KeyError, AttributeError, OverflowError, RecursionError, ElementTree.ParseError, zlib.error)
Pixels = NDArray[np.uint8]
Listed = dict[str, Any]  # class by its key in the form's list of classes
_FAR = 1 << 22  # pixels: pycocotools makes room for every pixel of a polygon's sides


class LeftOut(Exception):
    """Why a shape or an image is left out, to be counted."""


class Drawing(NamedTuple):
    """What a file says of one image: its name, width and height (None: not said), classes and shapes, lowest first."""

    image: Any
    size: tuple[Any, Any] | None
    shapes: Sequence[tuple[Any, Any]]


def polygon(by: str, kind: str, rings: Any, size: Size) -> Pixels:
    """Rings of ``x, y, x, y, …`` as ``h w`` of 0 and 1.

    By ``pillow``, one ring and its outline, as LabelMe (``shape_to_mask``) does; by ``opencv``, later rings being holes
    with their edges, as Ultralytics and Supervisely do; or by ``coco``, all rings together, as pycocotools does.
    """
    if kind not in ("polygon", "rectangle"):
        raise LeftOut(f"shapes of the kind {kind!r}, which have no area")
    found = []
    for ring in rings:
        points: NDArray[Any] = np.asarray(ring, np.float64).reshape(-1, 2)
        if kind == "rectangle" and len(points) == 2:
            points = np.stack([points[[0, 1, 1, 0], 0], points[[0, 0, 1, 1], 1]], 1)
        if len(points) < 3:
            raise LeftOut("shapes of fewer than three points")
        near = (np.abs(points) < _FAR).all()  # false of nan, too
        if not near or np.abs(np.diff(points, axis=0, append=points[:1])).sum() > _FAR:
            raise LeftOut("shapes that reach far outside the image")
        found.append(points)
    if by == "coco":
        runs = coco_mask.frPyObjects([ring.ravel().tolist() for ring in found], *size)
        return np.asarray(coco_mask.decode(coco_mask.merge(runs)))
    canvas = np.zeros(size, np.uint8)
    if by == "pillow":
        image = Image.fromarray(canvas)
        ImageDraw.Draw(image).polygon([*map(tuple, found[0].tolist())], fill=1, outline=1)
        return np.asarray(image)
    for number, ring in enumerate(found):
        cv2.fillPoly(canvas, [ring.astype(np.int32)], int(number == 0))
    return canvas


def run_lengths(counts: Any, size: Size) -> Pixels:
    """COCO's run lengths, down the columns; pycocotools decodes them at random where they end too early."""
    lengths = _uncompressed(counts) if isinstance(counts, str) else counts
    if not all(isinstance(n, int) and n >= 0 for n in lengths) or sum(lengths) != size[0] * size[1]:
        raise LeftOut("run lengths that do not fill their size")
    return np.repeat((np.arange(len(lengths)) & 1).astype(np.uint8), lengths).reshape(size[::-1]).T


def _uncompressed(text: str) -> list[int]:
    """cocoapi, maskApi.c, rleFrString: 5 bits a character, differences from the fourth number on."""
    found: list[int] = []
    number = shift = 0
    for bits in (ord(character) - 48 for character in text):
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("no run lengths")
        number |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            number -= (bits & 16) and 1 << shift
            found.append(number + (found[-2] if len(found) > 2 else 0))
            number = shift = 0
    return found


def patch(left: int, top: int, columns: int, rows: int, values: Callable[[], Any], size: Size) -> Pixels:
    """A bitmap whose corner lies at ``left``, ``top``; its ``values`` are asked for where it lies in the image."""
    if min(left, top, columns, rows) < 0 or left + columns > size[1] or top + rows > size[0]:
        raise LeftOut("bitmaps that reach outside the image")
    canvas = np.zeros(size, np.uint8)
    canvas[top : top + rows, left : left + columns] = values() > 0
    return canvas


def bitmap(corner: Any, text: Any, packed: bool, size: Size) -> Pixels:
    """A PNG in base64, ``packed`` by zlib too (Supervisely); its alpha channel, or what is not 0."""
    left, top = map(int, corner)
    data = b64decode(text)
    # No more than an image of this size can have: a few bytes may be packed gigabytes.
    data = zlib.decompressobj().decompress(data, 5 * size[0] * size[1] + (1 << 16)) if packed else data
    with open_picture(data) as file:
        alpha, (columns, rows) = "A" in file.getbands(), file.size
        values = partial(file.getchannel, "A") if alpha else partial(file.convert, "L")
        return patch(left, top, columns, rows, lambda: np.asarray(values()), size)


def whole(path: Path, values: NDArray[Any], size: Size) -> Pixels:
    """Where a mask of an image is not 0; raises ProtosegError if its size is another."""
    if values.shape != size:
        raise ProtosegError(f"mask {path}: expected {size} as its image (h, w), got {values.shape}: export it again")
    return (values > 0).astype(np.uint8)


def parts_of(name: str) -> list[str]:
    """Folders and name of a path, without those that lead upwards, and those that only tell images and labels apart."""
    parts = [part for part in normalize("NFC", name).replace("\\", "/").split("/") if part.strip(".")]
    *folders, last = parts or [""]
    return [*(folder for folder in folders if folder not in ("images", "labels", "img", "ann")), last]


def _coco(file: Path, root: Path, listed: Listed) -> Iterator[Drawing]:
    content = json.loads(file.read_bytes())
    names = {each["id"]: each["name"] for each in content["categories"]}
    images = {each["id"]: each for each in content["images"]}
    if len(names) < len(content["categories"]) or len(images) < len(content["images"]):
        raise ValueError("an id that several categories or images have")
    listed |= {name: name for name in names.values()}
    shapes: dict[Any, list[Any]] = {key: [] for key in images}
    for each in content["annotations"]:
        panoptic = "segments_info" in each
        more = {"picture": file.with_suffix("").joinpath(*parts_of(each["file_name"]))} if panoptic else {}
        for part in each["segments_info"] if panoptic else [each]:
            shapes.setdefault(each["image_id"], []).append((names.get(part["category_id"]), part | more))
    for key, found in shapes.items():
        image = images.get(key, {"file_name": f"image {key}, which is not listed", "width": 0, "height": 0})
        yield Drawing(image["file_name"], (image["width"], image["height"]), found)


def _fill_coco(each: Any, size: Size) -> Pixels:
    if "picture" in each:
        return whole(each["picture"], _panoptic_ids(each["picture"]) == each["id"], size)
    found = each.get("segmentation")
    if not found:
        raise LeftOut("boxes without an outline")
    if isinstance(found, list):
        return polygon("coco", "polygon", found, size)
    if found["size"] != [*size]:
        raise LeftOut("run lengths of another size than the image")
    return run_lengths(found["counts"], size)


@lru_cache(maxsize=1)  # one image's segments follow one another
def _panoptic_ids(picture: Path) -> Any:
    """panopticapi, ``rgb2id``."""
    return read_image(picture, turn=False).astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)


def _labelme(file: Path, root: Path, listed: Listed) -> Iterator[Drawing]:
    content, special = json.loads(file.read_bytes()), {"__ignore__": "void", "_background_": "background"}
    size = content.get("imageWidth"), content.get("imageHeight")
    shapes = [(special.get(each["label"], each["label"]), each) for each in content["shapes"]]
    folder = file.parent.relative_to(root).as_posix() if root.is_dir() else ""
    place = str(content["imagePath"]).replace("\\", "/")
    beside = posixpath.basename(place)
    place = beside if beside and file.with_name(beside).is_file() else place
    yield Drawing(posixpath.normpath(posixpath.join(folder, place)), size if any(size) else None, shapes)


def _fill_labelme(each: Any, size: Size) -> Pixels:
    kind, points = each.get("shape_type") or "polygon", each["points"]
    return bitmap(points[0], each["mask"], False, size) if kind == "mask" else polygon("pillow", kind, [points], size)


def _cvat(file: Path, root: Path, listed: Listed) -> Iterator[Drawing]:
    text = file.read_text(encoding="utf-8-sig")
    if "<!DOCTYPE" in text:
        raise ValueError("a DOCTYPE, which may make gigabytes of a few lines")
    for image in ElementTree.fromstring(text).iter("image"):
        shapes = [(each.attrib["label"], each) for each in image if each.tag != "tag" and "label" in each.attrib]
        shapes.sort(key=lambda shape: int(shape[1].get("z_order", 0)))
        yield Drawing(image.attrib["name"], (int(image.attrib["width"]), int(image.attrib["height"])), shapes)


def _fill_cvat(each: ElementTree.Element, size: Size) -> Pixels:
    said, kind = each.attrib, {"box": "rectangle"}.get(each.tag, each.tag)
    if kind == "mask":
        left, top, columns, rows = (int(said[key]) for key in ("left", "top", "width", "height"))
        runs = [*map(int, said["rle"].split(","))]
        return patch(left, top, columns, rows, lambda: run_lengths(runs, (columns, rows)).T, size)
    if float(said.get("rotation", 0)):
        raise LeftOut("boxes that are turned")
    corners = [said[key] for key in ("xtl", "ytl", "xbr", "ybr") if key in said]
    return polygon("coco", kind, [corners or said.get("points", "").replace(";", ",").split(",")], size)


def _yolo(file: Path, root: Path, listed: Listed) -> Iterator[Drawing]:
    for each in () if listed else sorted(root.glob("*.y*ml")):  # data.yaml; the loader leaves a class called no a word
        found = yaml.load(each.read_text(encoding="utf-8-sig"), yaml.BaseLoader).get("names") or []
        listed |= found if isinstance(found, dict) else {str(i): name for i, name in enumerate(found)}
    lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    yield Drawing(stem_in(root, file), None, [(listed.get(i), "".join(rest)) for i, *rest in lines])


def _fill_yolo(line: str, size: Size) -> Pixels:
    return polygon("opencv", "polygon", [np.array(line.split(), np.float64).reshape(-1, 2) * size[::-1]], size)


def _supervisely(file: Path, root: Path, listed: Listed) -> Iterator[Drawing]:
    if not listed:
        listed |= {each["title"]: each["title"] for each in json.loads((root / "meta.json").read_bytes())["classes"]}
    content = json.loads(file.read_bytes())
    size, shapes = content["size"], [(each["classTitle"], each) for each in content["objects"]]
    yield Drawing(stem_in(root, file), (size["width"], size["height"]), shapes)


def _fill_supervisely(each: Any, size: Size) -> Pixels:
    kind = each["geometryType"]
    if kind == "bitmap":
        return bitmap(each["bitmap"]["origin"], each["bitmap"]["data"], True, size)
    rings = [each["points"]["exterior"], *each["points"].get("interior", [])]
    return polygon("opencv", kind, [np.rint(np.array(ring, np.float64)) for ring in rings], size)


def _class_masks(file: Path, root: Path, listed: Listed) -> Iterator[Drawing]:
    shapes: dict[str, list[Any]] = {}
    for folder in sorted(each for each in root.iterdir() if each.is_dir()):
        listed[folder.name] = folder.name
        for mask in list_images(folder, recursive=True):
            shapes.setdefault(stem_in(folder, mask), []).append((folder.name, mask))
    yield from (Drawing(stem, None, found) for stem, found in shapes.items())


def _fill_class_mask(path: Path, size: Size) -> Pixels:
    mask = read_mask(path)
    values = mask.values if mask.colors is None else mask.colors[mask.values]
    values = values.reshape(*values.shape[:2], -1).astype(np.int64)
    values = values @ (1 << 16 * np.arange(values.shape[2]))  # a number for each colour
    values = values if mask.clear is None else np.where(mask.clear, 0, values)
    if len(np.unique(values[values > 0])) > 1:  # 255 around a class of 1, or smooth edges
        raise ProtosegError(f"mask {path}: expected one value beside 0 or black, got several: export it again")
    return whole(path, values, size)


class Form(NamedTuple):
    """How a form is read."""

    read: Callable[[Path, Path, Listed], Iterator[Drawing]]  # of a file, the folder or file that was given
    fill: Callable[[Any, Size], Pixels]
    pattern: str  # of the files in a folder
    ordered: bool = True  # later shapes lie on top
    rest: str = "background"  # what pixels are that no shape covers


FORMS = {
    "coco_panoptic": Form(_coco, _fill_coco, "", rest="void"),
    "coco": Form(_coco, _fill_coco, "", ordered=False),
    "cvat": Form(_cvat, _fill_cvat, "**/*.xml"),
    "supervisely": Form(_supervisely, _fill_supervisely, "**/ann/*.json"),
    "yolo": Form(_yolo, _fill_yolo, "**/labels/**/*.txt", ordered=False),
    "labelme": Form(_labelme, _fill_labelme, "**/*.json"),
    "class_masks": Form(_class_masks, _fill_class_mask, "", ordered=False),
}


def recognise(path: Path) -> str:
    """The form of a file or folder; what is no other is ``class_masks``."""
    if path.is_file() and path.suffix.lower() == ".json":
        text = path.read_text(encoding="utf-8", errors="ignore")
        return "coco_panoptic" if '"segments_info"' in text else "coco" if '"categories"' in text else "labelme"
    forms = ((name, form.pattern) for name, form in FORMS.items() if form.pattern)
    return next((name for name, pattern in forms if path.match(pattern) or any(path.glob(pattern))), "class_masks")


def read(path: Path, form: str) -> tuple[list[str], list[Drawing]]:
    """Classes, the listed ones or else those in use, and drawings; raises ProtosegError if it is not of that form."""
    listed, drawings = Listed(), list[Drawing]()
    file, pattern = path, FORMS[form].pattern
    try:
        files = sorted(path.glob(pattern)) if pattern and path.is_dir() else [path]
        for file in (file for file in files if not file.name.startswith("._")):
            drawings += FORMS[form].read(file, path, listed)
        used = {name for drawing in drawings for name, _ in drawing.shapes if isinstance(name, str)}
        names = [*listed.values()] or sorted(used)
        if not drawings or not all(isinstance(name, str) and name and "${" not in name for name in names):
            raise ValueError("no image in it, or a class without a name, or with ${, which class files cannot hold")
    except (*FOREIGN, yaml.YAMLError) as error:
        got = f"{file.absolute()}, which cannot be read as {form} ({type(error).__name__}: {error})"
        remedy = "name the form with --form if it is one of these"
        raise ProtosegError(f"convert: expected annotations as {', '.join(FORMS)}, got {got}: {remedy}") from error
    return names, drawings
