"""What the pixels of one's own masks mean: ids, or the colours of the classes. Decided once for a whole folder."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from protoseg.data.class_file import ClassFile
from protoseg.data.files import BLACK, WHITE, Color, Used, labels_of_colors, labels_of_ids, read_mask, used_values
from protoseg.data.label_spaces import Ids, unknown_id
from protoseg.data.statistics import in_threads, spread, stamp
from protoseg.types import ProtosegError

IDS, COLORS, BINARY = "ids", "colours", "binary"
_SAMPLE = 256

UsedBy = Sequence[tuple[Path, Used]]


def evidence(used: Used, file: ClassFile) -> str | None:
    """``IDS`` or ``COLORS`` where the values of one mask can be nothing else; None where they may be both, or neither.

    Grey levels and palettes whose colours all are colours of classes, or void, are colours, unless they mean the same
    as ids, or the file of classes names these very grey levels as ids. Black and 0 alone say nothing.
    """
    ids_known = used.ids is not None and all(file.known(i) for i in used.ids)
    colors_known = used.colors is not None and all(color in file.colors for color in used.colors)
    if not colors_known:
        return IDS if ids_known and any(used.ids or ()) else None
    if used.ids is None:
        return COLORS
    pairs = zip(used.ids, used.colors or (), strict=True)
    telling = [i for i, c in pairs if c != BLACK and not (file.known(i) and file.table[i] == file.colors[c])]
    said = used.kind != "palette" and all(i in file.said for i in telling)
    return COLORS if telling and not said else None


def decide(used: UsedBy, file: ClassFile) -> dict[str, str]:
    """How each kind of mask, of all splits, is read: ``IDS``, ``COLORS``, or ``BINARY``: ids, 255 the second class.

    Raises ProtosegError: some masks of a kind hold ids and others colours; or 255 may be void as well as a class.
    """
    readings = {}
    for kind in dict.fromkeys(values.kind for _, values in used):
        group = [(path, values) for path, values in used if values.kind == kind]
        found = {reading: path for path, values in group if (reading := evidence(values, file)) is not None}
        if len(found) > 1:
            text = f"masks: expected ids in all {kind} masks or class colours in all, got colours in {found[COLORS]}"
            remedy = "add colours that are missing to the file of classes (and void: [255] if 255 is no class)"
            raise ProtosegError(f"{text} and ids in {found[IDS]}: {remedy}, or keep the two sorts in two folders")
        readings[kind] = next(iter(found), COLORS if kind == "colour" else IDS)
        if readings[kind] == IDS and _is_binary(group, file):
            readings[kind] = BINARY
    return readings


def _top(kind: str) -> int:
    return 65535 if kind == "16-bit" else 255


def _is_binary(group: UsedBy, file: ClassFile) -> bool:
    """Whether 255 (65535) is the second of two classes; raises where it may be, and as well may be void."""
    top = _top(group[0][1].kind)
    sets = [set(values.ids or ()) for _, values in group]
    used, void, names = set().union(*sets), file.void, file.label_space.classes
    labels = {int(file.table[i]) for i in used if file.known(i)} - {void}
    white = file.colors.get(WHITE) if top == 255 else None
    said = top in file.said or file.table[top] != void or white == void
    apart = len(names) == 2 and used == {0, 1, top} and not any({1, top} <= ids for ids in sets)
    if said or top not in used or len(names) == 1 or not labels or (len(labels) > 1 and not apart):
        return False
    plain = len(names) == 2 and not file.ids_given and file.colors.get(BLACK) != 1 and white in (None, 1)
    if plain and not apart and 0 in used:
        return True
    path = next(path for (path, _), ids in zip(group, sets, strict=True) if top in ids)
    why = "never lies beside 1" if apart else "is no class"
    got = f"{', '.join(map(str, sorted(used)))}, of which {top} (e.g. in {path}) {why}"
    remedy = f"if {top} is void, write void: [{top}] into the file of classes; if it is a class, its id, e.g."
    ids = f"ids: {{{names[0]}: 0, {names[1]}: {top}}}"
    raise ProtosegError(f"masks: expected ids of the classes, got {got}: {remedy} {ids}")


class MaskReading:
    """Reads masks (given of all splits, so that these agree) in one way for each kind; raises as ``decide``."""

    def __init__(self, masks: Sequence[Path], file: ClassFile) -> None:
        self.file = file
        first = {masks[i] for i in spread(len(masks), _SAMPLE)}
        used = used_values_of([path for path in masks if path in first])
        self.readings = decide(used, file)
        if not _is_settled(used, file, self.readings):
            used += used_values_of([path for path in masks if path not in first])
            self.readings = decide(used, file)
        # One mask of each sort, for those that were not looked at.
        self._examples = {
            (u.kind, evidence(u, file), 1 in (u.ids or ()), _top(u.kind) in (u.ids or ())): (path, u)
            for path, u in used
        }

    def __str__(self) -> str:
        first, *_, last = self.file.label_space.classes * 2
        words = {IDS: "masks as ids", COLORS: "masks by the colours that they show"}
        said = (
            (k, words.get(r, f"masks, 0 for {first!r} and {_top(k)} for {last!r}")) for k, r in self.readings.items()
        )
        return ", ".join(map(" ".join, said)) or "not read"

    def label(self, path: Path, table: Ids, colors: Mapping[Color, int]) -> Ids:
        """The labels of one mask, ``h w``, by a table of ids, whose type they have, or the label of each colour.

        Raises ProtosegError: a file not to be read, values that stand for no class or, beside other masks, for several.
        """
        mask = read_mask(path)
        reading, two = self.readings.get(mask.kind), self.file.label_space.num_classes == 2
        mixable = two or mask.kind == "palette" or any(r == g == b > 0 for r, g, b in self.file.colors)
        if reading is None or (reading != COLORS and mixable):
            reading = decide([*self._examples.values(), (path, used_values(mask))], self.file)[mask.kind]
        ids = None if reading == COLORS else mask.ids
        if ids is None:
            label = labels_of_colors(path, mask, colors, table.dtype)
        else:
            if reading == BINARY:
                ids = np.where(ids == _top(mask.kind), ids.dtype.type(1), ids)
            mask = mask._replace(clear=None) if mask.kind == "palette" else mask  # there, a colour for the eye
            label = labels_of_ids(path, ids, table, mask.clear)
        if mask.clear is None or not mask.clear.any():
            return label
        void = self.file.void
        hidden = np.unique(label[mask.clear])
        if not self.file.transparent and any(i not in (void, unknown_id(table)) for i in hidden.tolist()):
            text = f"mask {path}: expected opaque pixels, got {mask.clear.sum()} transparent ones, some with a class"
            raise ProtosegError(f"{text}: add transparent to void in the file of classes, or make them opaque")
        return np.where(mask.clear, label.dtype.type(void), label)


def _is_settled(used: UsedBy, file: ClassFile, readings: Mapping[str, str]) -> bool:
    """Whether no other mask can change how they are read, but only be refused."""

    def settled(group: list[Used], reading: str) -> bool:
        ids = {int(file.table[i]) for values in group for i in values.ids or () if file.known(i)}
        return any(evidence(v, file) for v in group) and (reading == COLORS or len(ids - {file.void}) > 1)

    return all(settled([v for _, v in used if v.kind == kind], reading) for kind, reading in readings.items())


def used_values_of(masks: Sequence[Path]) -> list[tuple[Path, Used]]:
    """The values in use of some masks; those that cannot be read are left out, and told when their turn comes."""

    def look(path: Path) -> tuple[Path, Used] | None:
        with suppress(ProtosegError):
            return path, _used_in(path, *stamp(path))
        return None

    return [found for found in in_threads(look, masks, "reading masks") if found is not None]


@lru_cache(maxsize=4096)
def _used_in(path: Path, size: int, changed: int) -> Used:
    return used_values(read_mask(path))
