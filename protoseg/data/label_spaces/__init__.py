"""Label spaces (classes, colours, things) and tables from ids in mask files to train ids, of the .tsv files beside."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.types import LabelSpace, ProtosegError

# Labels ``h w``, and tables of train ids: uint8, or uint16 in label spaces of more than 255 classes.
Ids = NDArray[np.uint8 | np.uint16]
Changes = Mapping[str, str | None]  # what a class becomes, by name; None: it is ignored
FILE_IGNORED, WIDE_FILE_IGNORED = 255, 65535  # in label files and tables, uint8 and uint16; in tensors ``IGNORE_INDEX``
# What a table gives for an id that the data set does not know. Never a train id: label spaces here hold fewer classes.
UNKNOWN_ID, WIDE_UNKNOWN_ID = FILE_IGNORED - 1, WIDE_FILE_IGNORED - 1

# What a class becomes, by ``relabel`` or a mapping, that a data set does not annotate: its pixels are of one of those.
NOT_ANNOTATED = "not_annotated"
FILE_REST = UNKNOWN_ID - 1


def unknown_id(table: Ids) -> int:
    """``UNKNOWN_ID``, or ``WIDE_UNKNOWN_ID`` of a uint16 table."""
    return ignored_in(table) - 1


def file_ignored(num_classes: int) -> int:
    """Ignored pixels in label files of so many classes: 255, or 65535 where 255 is a class."""
    return FILE_IGNORED if num_classes <= FILE_IGNORED else WIDE_FILE_IGNORED


def ignored_in(label: Ids) -> int:
    """Ignored pixels of an array as it was read from a file: the largest value of its dtype."""
    return int(np.iinfo(label.dtype).max)


def rest_in(label: Ids) -> int:
    """Pixels of classes that a data set does not annotate, of an array on the way to training: no train id."""
    return unknown_id(label) - 1


def id_table(train_ids: Mapping[int, int], dtype: Any = np.uint8) -> NDArray[Any]:
    """The table ``file id -> train id``, of 256 entries or more; of ids not given 255 is ignored, the rest unknown."""
    ignored = np.iinfo(dtype).max
    table: NDArray[Any] = np.full(max([FILE_IGNORED, *train_ids]) + 1, ignored - 1, dtype)
    table[FILE_IGNORED] = ignored
    table[[*train_ids]] = [*train_ids.values()]
    return table


def file_ids(table: Ids, num_classes: int) -> Ids:
    """The way back: the smallest id of each class in mask files, ``c``; 255 (or 65535) where no id stands for it."""
    ids: Ids = np.full(num_classes, np.iinfo(table.dtype).max, dtype=table.dtype)
    for file_id in np.flatnonzero(table < num_classes)[::-1]:
        ids[table[file_id]] = file_id
    return ids


def mapping_table(source: LabelSpace, target: LabelSpace, mapping: Changes | None) -> NDArray[np.uint8]:
    """The 256-entry table ``train id of source -> train id of target``; ignored and unknown ids stay what they are.

    ``mapping`` is of the name of each source class to that of a target class, to ``NOT_ANNOTATED``, or None for
    ignored; without one the classes are the same already. Raises ProtosegError: classes that differ without a mapping,
    a mapping that does not fit them, or more than 253 classes.
    """
    for space in (source, target):
        if space.num_classes > FILE_REST:
            text = f"mapping: expected label spaces of at most {FILE_REST} classes"
            raise ProtosegError(f"{text}, got {space.name!r} of {space.num_classes}: choose other data")
    if mapping is None:
        if source.classes != target.classes:
            got = " and ".join(f"{space.name!r} ({', '.join(space.classes)})" for space in (source, target))
            text = f"source and target: expected the same classes, got {got}"
            raise ProtosegError(f"{text}: give data.mapping, {{source class: target or null}}")
        mapping = {name: name for name in source.classes}
    unmapped = set(source.classes) - mapping.keys()
    unknown = [*(mapping.keys() - set(source.classes)), *({*mapping.values()} - {*target.classes, NOT_ANNOTATED, None})]
    if unmapped or unknown:
        got = f"none for {_names(unmapped)}" if unmapped else f"no class of theirs: {_names(unknown)}"
        known = "; ".join(f"{space.name!r} has {', '.join(space.classes)}" for space in (source, target))
        text = f"mapping: expected every class of {source.name!r} with a class of {target.name!r} or null"
        raise ProtosegError(f"{text}, got {got}; {known}")
    ids = (*range(target.num_classes), FILE_REST, FILE_IGNORED)
    labels = dict(zip((*target.classes, NOT_ANNOTATED, None), ids, strict=True))
    table = np.arange(256, dtype=np.uint8)
    table[: source.num_classes] = [labels[mapping[name]] for name in source.classes]
    return table


def relabelled(space: LabelSpace, changes: Changes) -> tuple[LabelSpace, Changes]:
    """The label space in which some classes are left out, merged or renamed, and the mapping to it from ``space``.

    ``changes`` are of the name of a class to None for ignored, to ``NOT_ANNOTATED``, or to the name of the class that
    it becomes: another of ``space``, or a new one, which takes the colour of the first class that becomes it. Raises
    ProtosegError: a change to a class that is not there, or no class left.
    """
    if not isinstance(changes, Mapping):
        raise ProtosegError(f"relabel: expected {{CLASS: CLASS or null}}, got {changes!r}")
    unknown = changes.keys() - set(space.classes)
    mapping = {name: changes.get(name, name) for name in space.classes}
    gone = (None, NOT_ANNOTATED)
    colors: dict[str, tuple[int, int, int]] = {}
    for old, color in zip(space.classes, space.colors, strict=True):
        new = mapping[old]
        if new not in gone and (new == old or new not in colors):
            colors[str(new)] = color
    if unknown or not colors:
        got = f"no class of it: {_names(unknown)}" if unknown else "nothing but null, which leaves no class"
        text = f"relabel: expected classes of {space.name!r} ({', '.join(space.classes)}), each with the class"
        raise ProtosegError(f"{text} that it becomes or null to ignore it, got {got}")
    things = tuple(dict.fromkeys(new for old in space.things if (new := mapping[old]) not in gone))
    return replace(space, classes=tuple(colors), colors=tuple(colors.values()), things=things), mapping


def _names(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))


@cache
def _rows(name: str) -> list[tuple[int | None, dict[str, str]]]:
    """The lines of ``NAME.tsv`` beside this file with their train ids, first those that are ignored (None, no name)."""
    with (Path(__file__).parent / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t"))
    train_ids = count()
    return [(next(train_ids) if row["name"] else None, row) for row in sorted(rows, key=lambda row: row["name"] != "")]


def column(name: str, title: str) -> dict[str, str | None]:
    """What a column of ``NAME.tsv`` says of each class; None where it is empty."""
    return {row["name"]: row[title] or None for _, row in _rows(name) if row["name"]}


@cache
def read_classes(name: str) -> LabelSpace:
    """The classes of ``NAME.tsv``, in the order of its lines."""
    rows = [row for _, row in _rows(name) if row["name"]]
    things = tuple(row["name"] for row in rows if row["kind"] == "thing")
    return LabelSpace(name, tuple(row["name"] for row in rows), tuple(map(_color, rows)), things)


def read_ids(name: str, title: str = "id") -> NDArray[Any]:
    """The :func:`id_table` of a column of ``NAME.tsv``, whose cells are numbers and ranges (``2 5-7``)."""
    dtype = np.uint8 if read_classes(name).num_classes < UNKNOWN_ID else np.uint16
    labels: dict[int, int] = {}
    for label, row in _rows(name):
        for low, _, high in (part.partition("-") for part in row[title].split()):
            train_id = np.iinfo(dtype).max if label is None else label
            labels |= dict.fromkeys(range(int(low), int(high or low) + 1), train_id)
    return id_table(labels, dtype)


def read_colors(name: str) -> dict[tuple[int, int, int], int]:
    """The label of each colour in ``NAME.tsv``: train ids, and 255 for those that are ignored."""
    return {_color(row): FILE_IGNORED if label is None else label for label, row in _rows(name) if row["red"]}


def _color(row: Mapping[str, str]) -> tuple[int, int, int]:
    return int(row["red"]), int(row["green"]), int(row["blue"])


ADE20K_150, ADE20K_FULL, COCO_STUFF = read_classes("ade20k"), read_classes("ade20k_full"), read_classes("coco_stuff")
CAMVID, CITYSCAPES = read_classes("camvid"), read_classes("cityscapes")

# What SYNTHIA has of Cityscapes' classes, and the 13 that older work reports: without wall, fence and pole.
SYNTHIA_16 = tuple(name for name in CITYSCAPES.classes if name not in ("terrain", "truck", "train"))
SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))

# Between the two (the built-in streets have CamVid's classes), for data.mapping.
CITYSCAPES_TO_CAMVID, CAMVID_TO_CITYSCAPES = column("cityscapes", "camvid"), column("camvid", "cityscapes")
MAPPINGS = {"camvid_to_cityscapes": CAMVID_TO_CITYSCAPES, "cityscapes_to_camvid": CITYSCAPES_TO_CAMVID}


def named_mapping(name: str) -> Changes:
    """A mapping of ``MAPPINGS`` by its name; raises ProtosegError where there is none."""
    if name not in MAPPINGS:
        raise ProtosegError(f"mapping: expected {' or '.join(MAPPINGS)}, or {{source: target or null}}, got {name!r}")
    return MAPPINGS[name]
