"""Files made of a data set, or for one: predictions in the formats of ``export.yaml``, a copy that decodes much faster,
annotation files painted into a folder that ``data=folder`` trains on, and such folders in other forms.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from protoseg.data import public
from protoseg.data.class_file import MaskReading, read_class_file
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.decoding import PNG_DEPTH, open_picture, orientation, picture_size, turned
from protoseg.data.files import read_bounded, read_label, reading
from protoseg.data.label_spaces import FILE_IGNORED, UNKNOWN_ID, Ids, file_ids, file_ignored, id_table
from protoseg.data.pairing import IMAGE_SUFFIXES, by_key, by_stem, list_images
from protoseg.data.polygons import FOREIGN, FORMS, Drawing, Form, LeftOut, parts_of, read, recognise
from protoseg.data.statistics import in_threads
from protoseg.files import write_file, write_text
from protoseg.text import progress
from protoseg.types import MAX_CLASSES, LabelSpace, ProtosegError, require, yaml_beside

FORMATS: dict[str, dict[str, Any]] = yaml_beside(__file__, "export.yaml")
_KEPT_MODES = ("P", "1", "LA")  # small and unfiltered already; OpenCV would turn ids into colours, as it scales 2 bits
Places = dict[str, list[str]]  # images by the reason for which they, or shapes in them, are left out


def wanted_ids(name: str) -> Ids:
    """The id that stands for each train id in a format of ``FORMATS``, ``c``."""
    dataset = getattr(public, FORMATS[name]["dataset"])
    return file_ids(dataset.id_table, dataset.label_space.num_classes) + np.uint8(FORMATS[name].get("offset", 0))


def export_predictions(labels: Path, output: Path, name: str) -> list[Path]:
    """Write label PNGs of train ids, as ``evaluate.py`` leaves them in ``labels/``, in the format of a server.

    Those in a folder, subfolders included, into one folder, whose files are returned; ``name`` is one of ``FORMATS``.
    Raises ProtosegError: no PNGs there, a name that is not the data set's, two files that would get one name, or ids
    that are no classes of its label space.
    """
    wanted, ids_wanted = FORMATS[name], wanted_ids(name)
    found = [p for p in list_images(labels, recursive=True) if p.suffix.lower() == ".png"] if labels.is_dir() else []
    if not found:
        text = f"export: expected a folder with label PNGs, got {labels.absolute()}, which has none"
        raise ProtosegError(f"{text}: give the folder labels/ of a run of evaluate.py (with labels in its save=…)")

    def name_wanted(path: Path) -> str:
        match = re.fullmatch(wanted["images"], path.stem, re.DOTALL)
        if match is None:
            text = f"export: expected names as {name}'s images have them, e.g. {wanted['example']}.png, got {path}"
            raise ProtosegError(f"{text}: choose the format of the data that was predicted")
        return f"{match.expand(wanted['file'])}.png"

    sources, known = by_key(found, name_wanted), id_table({i: i for i in range(len(ids_wanted))})
    # Predictions hold no ignored pixels; a label file of a ground truth would.
    known[FILE_IGNORED] = UNKNOWN_ID
    for target, source in progress(sources.items(), f"exporting for {name}"):
        _write_png(output / target, ids_wanted[read_label(source, known)])
    return [output / target for target in sources]


def pack(datasets: Sequence[SegmentationDataset], root: Path, output: Path) -> tuple[int, int]:
    """Copy the images and masks of ``datasets`` to the same places under another folder, PNGs re-encoded.

    Images are stored without compression, masks with little, both without PNG's filters (by OpenCV 4.12 on): inflating
    and unfiltering is most of the time that decoding takes. Other files (JPEGs, class files, lists of splits) are
    copied, and those that are there are kept. Returns the bytes of the files before and after. Raises ProtosegError: a
    file that is no image, does not lie in ``root`` or cannot be written, or ``output`` is in ``root``.
    """
    if output.resolve().is_relative_to(root.resolve()):
        raise ProtosegError(f"pack: expected a folder outside that of the data, {root}, got {output}")
    files = {path: 1 for dataset in datasets for _, path in dataset.samples if path is not None}
    files |= {path: 0 for dataset in datasets for image, _ in dataset.samples for path in dataset.reader.files(image)}
    files |= {path: -1 for path in root.iterdir() if path.is_file() and path not in files}
    files |= {path: -1 for dataset in datasets for path in dataset.lists}
    for path in files:
        if not path.absolute().is_relative_to(root.absolute()):
            raise ProtosegError(f"pack: expected the files in {root}, got {path}: set data.root")

    def pack_file(path: Path) -> int:
        """Write a file, PNGs with zlib's level (-1: as it is); the size of what is there now."""
        target, level = output / path.absolute().relative_to(root.absolute()), files[path]
        if not target.is_file():
            packed = packed_png(path, level) if level >= 0 and path.suffix.lower() == ".png" else None
            write_file(target, lambda to: shutil.copyfile(path, to) if packed is None else to.write_bytes(packed))
        return target.stat().st_size

    return sum(path.stat().st_size for path in files), sum(in_threads(pack_file, [*files], "packing"))


def packed_png(path: Path, level: int) -> bytes | None:
    """The PNG with the same pixels; None for one that is better left; raises ProtosegError for no image."""
    data = read_bounded(path, "image")
    with reading(path, "image"):
        with open_picture(data) as file:
            if file.mode in _KEPT_MODES or data[PNG_DEPTH] < 8:
                return None
        packed = encode_png(np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)), level)
    # What a file says beside its pixels (EXIF orientation) is lost: such a file stays.
    seen = [np.asarray(cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR)) for each in (data, packed)]
    return packed if np.array_equal(seen[0], seen[1]) else None


def encode_png(array: NDArray[Any], level: int) -> bytes:
    """A PNG of ``h w`` (grey), ``h w 3`` (BGR) or ``h w 4`` (BGRA), of 8 or 16 bits, unfiltered by OpenCV 4.12 on."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, level]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    return cv2.imencode(".png", array, options)[1].tobytes()


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
    base = inputs[0] if inputs[0].is_dir() else inputs[0].parent
    where = images or base
    root = base if where.absolute().is_relative_to(base.absolute()) else where.absolute().parent
    index: dict[str, list[Path]] = defaultdict(list)
    folder: dict[Any, str] = {}  # that an image lies in, or is said to; "" where that is the uppermost
    for path in list_images(where, recursive=True) if where.is_dir() else ():
        place = os.path.relpath(path, root)
        folder[path] = _folder(place)
        for key in _ends(place):
            index[key].append(path)
    drawings, there = [drawing for _, each in found for drawing in each], {*folder.values()}
    said = {_folder(str(drawing.image)) for drawing in drawings}
    by_file = form not in ("coco", "coco_panoptic", "cvat")  # the name of an image is that of a file beside it
    left_out, done = defaultdict[str, list[str]](list), set()
    for drawing in progress(drawings, "converting"):
        try:
            matches = next((index[key] for key in _ends(str(drawing.image)) if key in index), [])
            if len(matches) != 1:
                raise LeftOut("images whose name several files have" if matches else "images that are missing")
            one, other = folder[matches[0]], _folder(str(drawing.image))
            if by_file and one and other and one != other and (other in there or one in said):
                raise LeftOut("images that are missing, where another folder has one of the name")
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
    write_text(out / "classes.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return form, names, len(done), left_out


def _ends(name: str) -> list[str]:
    """``/a/b.png``, ``a/b.png``, ``b.png`` of ``a/b.png``, then the same without suffix."""
    parts = ["", *parts_of(name)]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return ends + [end.rpartition(".")[0] for end in ends if end.lower().endswith(IMAGE_SUFFIXES)]


def _folder(name: str) -> str:
    return "/".join(parts_of(name)[:-1])


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
    reading, beside = MaskReading([*masks.values()], file), folder / "images"
    photos = by_stem(beside, list_images(beside, recursive=True)) if beside.is_dir() else {}
    names = {stem: stem + (photos[stem].suffix if stem in photos else ".jpg") for stem in masks}
    shown = progress([*masks], "converting")
    labels = ((names[stem], reading.label(masks[stem], file.table, file.colors)) for stem in shown)
    WRITERS[form](labels, file.label_space, out)
    return len(masks)


def _cityscapes(labels: Iterable[tuple[str, Ids]], space: LabelSpace, out: Path) -> None:
    """``NAME_gtFine_polygons.json``, and ``NAME_gtFine_labelIds.png`` where all classes are Cityscapes'."""
    city, ids = public.Cityscapes.label_space.classes, np.zeros(256, np.uint8)  # void is "unlabeled", 0
    for train_id, known in enumerate(space.classes if set(space.classes) <= set(city) else ()):
        ids[train_id] = file_ids(public.Cityscapes.id_table, len(city))[city.index(known)]
    for name, label in labels:
        start = f"{name.rpartition('.')[0].removesuffix('_leftImg8bit')}_gtFine"
        content = {"imgHeight": len(label), "imgWidth": len(label[0]), "objects": outlines(label, space)}
        write_text(out / f"{start}_polygons.json", json.dumps(content))
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


def _coco(panoptic: bool, labels: Iterable[tuple[str, Ids]], space: LabelSpace, out: Path) -> None:
    """``panoptic.json`` and ``panoptic/NAME.png``: red + 256 green + 65536 blue is a category's id, or 0 for void.

    Or ``coco.json``, of each class in an image one annotation by run lengths, which are exact where polygons are not.
    """
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, (name, label) in enumerate(labels, 1):
        ids, segments = np.where(label < space.num_classes, label.astype(np.uint32) + 1, 0), list[dict[str, Any]]()
        file = f"{name.rpartition('.')[0]}.png"
        for value in np.unique(ids[ids > 0]).tolist():
            mask = (ids == value).astype(np.uint8)
            where = {"area": int(mask.sum()), "bbox": [*cv2.boundingRect(mask)]}
            segments.append({"id": value, "category_id": value, "iscrowd": 0, **where})
            if not panoptic:
                changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=np.uint8(0)))  # down the columns
                runs = np.diff(changes, prepend=0, append=mask.size).tolist()
                of = {"id": len(annotations) + len(segments), "image_id": number}
                segments[-1] |= of | {"segmentation": {"size": [*mask.shape], "counts": runs}}
        images.append({"id": number, "file_name": name, "width": label.shape[1], "height": label.shape[0]})
        annotations += [{"image_id": number, "file_name": file, "segments_info": segments}] if panoptic else segments
        if panoptic:
            _write_png(out / "panoptic" / file, np.stack([ids & 255, ids >> 8, ids >> 16], 2).astype(np.uint8))
    categories = [
        {"id": i, "name": name, "supercategory": name, "color": [*color], "isthing": int(name in space.things)}
        for i, (name, color) in enumerate(zip(space.classes, space.colors, strict=True), 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text(out / ("panoptic.json" if panoptic else "coco.json"), json.dumps(content))


def _labelme(labels: Iterable[tuple[str, Ids]], space: LabelSpace, out: Path) -> None:
    """``NAME.json``, to lie beside its image."""
    content: dict[str, Any] = {"version": "5.0.0", "flags": {}, "imageData": None}
    for name, label in labels:
        parts = [(part["label"].replace("unlabeled", "void"), part["polygon"]) for part in outlines(label, space)]
        content["shapes"] = [{"label": what, "points": at, "shape_type": "polygon"} for what, at in parts]
        content |= {"imagePath": Path(name).name, "imageHeight": len(label), "imageWidth": len(label[0])}
        write_text((out / name).with_suffix(".json"), json.dumps(content))


def _write_png(path: Path, pixels: Ids) -> None:
    write_file(path, partial(Image.fromarray(pixels).save, format="PNG"))


WRITERS: dict[str, Callable[..., None]] = {"cityscapes": _cityscapes, "coco": partial(_coco, False)}
WRITERS |= {"coco_panoptic": partial(_coco, True), "labelme": _labelme}
