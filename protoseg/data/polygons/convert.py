"""Annotation files made into a folder that ``data=folder`` trains on, and such folders into other forms."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from PIL import Image
from rich.console import Console
from rich.progress import track

from protoseg.data.class_file import read_class_file
from protoseg.data.decoding import orientation, picture_size, turned
from protoseg.data.files import read_bounded
from protoseg.data.label_spaces import Ids, file_ids, file_ignored
from protoseg.data.mask_reading import MaskReading
from protoseg.data.pairing import IMAGE_SUFFIXES, by_stem, list_images
from protoseg.data.polygons.readers import FOREIGN, FORMS, Drawing, Form, LeftOut, parts_of, read, recognise
from protoseg.data.public import Cityscapes
from protoseg.files import write_file
from protoseg.types import MAX_CLASSES, LabelSpace, ProtosegError, require

Places = dict[str, list[str]]  # images by the reason for which they, or shapes in them, are left out
_progress = partial(track, description="converting", transient=True, console=Console(stderr=True))


def convert(
    inputs: Sequence[Path], out: Path, images: Path | None = None, form: str | None = None, rest: str | None = None
) -> tuple[str, list[str], int, Places]:
    """Paint annotations of one of ``FORMS`` into ``out/masks``, beside copies of their images and ``classes.yaml``.

    Where shapes overlap: in forms with an order of drawing (LabelMe; CVAT by its z_order; Supervisely) the later one is
    on top; in those without (COCO, YOLO, class masks) the smaller one, of equal ones the later. Masks fit their images
    as EXIF turns these. ``rest`` is the class of pixels without a shape, or ``void``. Returns form, classes, number of
    images, and what was left out. Raises ProtosegError: other inputs, no class, no image that fits.
    """
    form = form or recognise(inputs[0])
    if form in ("coco", "cvat"):
        require("coco", "pycocotools")
    found = [read(path, form) for path in inputs]
    used = dict.fromkeys(name for names, _ in found for name in names if name != "void")
    rest = rest or FORMS[form].rest
    names = [*([] if rest in ("void", *used) else [rest]), *used]
    if not used or len(names) > MAX_CLASSES:
        raise ProtosegError(f"convert: expected 1 to {MAX_CLASSES} classes in {inputs[0]}, got {len(used)}")
    ids = {name: i for i, name in enumerate(names)} | {"void": file_ignored(len(names))}
    where = images or (inputs[0] if inputs[0].is_dir() else inputs[0].parent)
    index: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(where, recursive=True) if where.is_dir() else ():
        for key in _ends(path.relative_to(where).as_posix()):
            index[key].append(path)
    left_out, done = defaultdict[str, list[str]](list), set()
    for drawing in _progress([drawing for _, each in found for drawing in each]):
        try:
            matches = next((index[key] for key in _ends(str(drawing.image)) if key in index), [])
            if len(matches) != 1:
                raise LeftOut("images whose name several files have" if matches else "images that are missing")
            name = Path(*parts_of(matches[0].relative_to(where).as_posix()))
            if name.with_suffix("") in done:
                raise LeftOut("images that are annotated twice, or of one name")
            label = _label(matches[0], drawing, FORMS[form], ids, ids[rest], left_out)
        except (LeftOut, ProtosegError) as error:
            left_out[str(error)].append(str(drawing.image))
            continue
        done.add(name.with_suffix(""))
        write_file(out / "images" / name, partial(shutil.copyfile, matches[0]))
        _write_png((out / "masks" / name).with_suffix(".png"), label)
    if not done:
        got = f"got none that fits ({'; '.join(left_out)}): give their folder with --images"
        raise ProtosegError(f"convert: expected images of {inputs[0]} in {where.absolute()}, {got}")
    content = {"classes": names, "void": [ids["void"]]}
    _write_text(out / "classes.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return form, names, len(done), left_out


def _ends(name: str) -> list[str]:
    """``/a/b.png``, ``a/b.png``, ``b.png`` of ``a/b.png``, then the same without suffix."""
    parts = ["", *parts_of(name)]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return ends + [end.rpartition(".")[0] for end in ends if end.lower().endswith(IMAGE_SUFFIXES)]


def _label(image: Path, drawing: Drawing, form: Form, ids: dict[str, int], rest: int, left_out: Places) -> Ids:
    """The label map, ``h w``, of the image as its EXIF turns it."""
    data = read_bounded(image, "image")
    stored, turn = picture_size(data), orientation(data)
    shown = stored[::-1] if turn >= 5 else stored
    if drawing.size not in (None, shown, stored):
        raise LeftOut("images of another size than the annotations say")
    width, height = shown if drawing.size in (None, shown) else stored
    label = np.full((height, width), rest, np.min_scalar_type(ids["void"]))
    parts = []
    for name, shape in drawing.shapes:
        try:
            if not isinstance(name, str) or name not in ids:
                raise LeftOut("shapes of no class that is listed")
            pixels = form.fill(shape, (height, width))
            left, top, columns, rows = cv2.boundingRect(pixels)
            if not rows:
                raise LeftOut("shapes without a pixel inside the image")
            window = np.s_[top : top + rows, left : left + columns]
            parts.append((ids[name], window, pixels[window] > 0))
        except ProtosegError:
            raise
        except (LeftOut, *FOREIGN) as error:
            reason = str(error) if isinstance(error, LeftOut) else "shapes that cannot be read"
            left_out[reason].append(str(drawing.image))
    if not form.ordered:  # the order of equal ones is kept, and so the later one of them is on top
        parts.sort(key=lambda part: -np.count_nonzero(part[2]))
    for value, window, part in parts:
        label[window][part] = value
    return label if drawing.size in (None, shown) else turned(label[..., None], turn)[..., 0]


def write_form(folder: Path, out: Path, form: str, classes: Path | None = None) -> int:
    """Write the masks of a folder, or of its ``masks``, in a form of ``WRITERS``; returns how many.

    Raises ProtosegError: no masks; masks or classes (else ``folder/classes.yaml``) that cannot be read.
    """
    file = read_class_file(classes or folder / "classes.yaml")
    place = folder / "masks" if (folder / "masks").is_dir() else folder
    masks = by_stem(place, list_images(place, recursive=True)) if place.is_dir() else {}
    if not masks:
        raise ProtosegError(f"convert: expected masks in {place.absolute()}, got none: give the folder that has them")
    reading = MaskReading([*masks.values()], file)
    labels = ((stem, reading.label(masks[stem], file.table, file.colors)) for stem in _progress([*masks]))
    WRITERS[form](labels, file.label_space, out)
    return len(masks)


def _cityscapes(labels: Iterable[tuple[str, Ids]], space: LabelSpace, out: Path) -> None:
    """``NAME_gtFine_polygons.json``, and ``NAME_gtFine_labelIds.png`` where all classes are Cityscapes'."""
    city, ids = Cityscapes.label_space.classes, np.zeros(256, np.uint8)  # void is "unlabeled", 0
    for train_id, name in enumerate(space.classes if set(space.classes) <= set(city) else ()):
        ids[train_id] = file_ids(Cityscapes.id_table, len(city))[city.index(name)]
    for stem, label in labels:
        start = f"{stem.removesuffix('_leftImg8bit')}_gtFine"
        content = {"imgHeight": len(label), "imgWidth": len(label[0]), "objects": outlines(label, space)}
        _write_text(out / f"{start}_polygons.json", json.dumps(content))
        if ids.any():
            _write_png(out / f"{start}_labelIds.png", ids[label])


def outlines(label: Ids, space: LabelSpace) -> list[dict[str, Any]]:
    """Polygons that give ``label`` (``h w``) again if drawn in this order: parts (4-connected) without their holes."""
    found = []
    for value in np.unique(label).tolist():
        name = space.classes[value] if value < space.num_classes else "unlabeled"
        count, parts, boxes, _ = cv2.connectedComponentsWithStats((label == value).astype(np.uint8), connectivity=4)
        for part in range(1, count):
            left, top, columns, rows, _ = boxes[part].tolist()
            mask = (parts[top : top + rows, left : left + columns] == part).astype(np.uint8)
            outer = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0], key=len)
            points = (outer[:, 0] + (left, top)).tolist()
            # A part of one or two pixels has as many corners, and a polygon three or more.
            found.append((columns * rows, {"label": name, "polygon": points + points[-1:] * (3 - len(points))}))
    return [entry for _, entry in sorted(found, key=lambda each: -each[0])]


def _panoptic(labels: Iterable[tuple[str, Ids]], space: LabelSpace, out: Path) -> None:
    """``panoptic.json`` and ``panoptic/NAME.png``: red + 256 green + 65536 blue is a category's id, or 0 for void."""
    images, annotations = [], []
    for number, (stem, label) in enumerate(labels, 1):
        ids = np.where(label < space.num_classes, label.astype(np.uint32) + 1, 0)
        _write_png(out / "panoptic" / f"{stem}.png", np.stack([ids & 255, ids >> 8, ids >> 16], 2).astype(np.uint8))
        segments = []
        for value in np.unique(ids[ids > 0]).tolist():
            mask = (ids == value).astype(np.uint8)
            where = {"area": int(mask.sum()), "bbox": [*cv2.boundingRect(mask)]}
            segments.append({"id": value, "category_id": value, "iscrowd": 0, **where})
        images.append({"id": number, "file_name": f"{stem}.jpg", "width": label.shape[1], "height": label.shape[0]})
        annotations.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
    categories = [
        {"id": i, "name": name, "supercategory": name, "color": [*color], "isthing": int(name in space.things)}
        for i, (name, color) in enumerate(zip(space.classes, space.colors, strict=True), 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write_text(out / "panoptic.json", json.dumps(content))


def _write_text(path: Path, text: str) -> None:
    write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def _write_png(path: Path, pixels: Ids) -> None:
    write_file(path, partial(Image.fromarray(pixels).save, format="PNG"))


WRITERS = {"cityscapes": _cityscapes, "coco_panoptic": _panoptic}
