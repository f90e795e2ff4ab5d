"""The YAML file that names the classes of one's own data, and what the pixels of one's own masks mean by it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protoseg.data.files import BLACK, WHITE, Color, Used, labels_of_colors, labels_of_ids, read_mask, used_values
from protoseg.data.label_spaces import FILE_IGNORED, WIDE_FILE_IGNORED, WIDE_UNKNOWN_ID, Ids, ignored_in, unknown_id
from protoseg.data.statistics import in_threads, spread, stamp
from protoseg.types import MAX_CLASSES, MAX_NAME, LabelSpace, ProtosegError, told

_KEYS = ("name", "classes", "ids", "void", "things")
_TRANSPARENT = "transparent"
IDS, COLORS, BINARY = "ids", "colours", "binary"  # how masks are read
_SAMPLE = 256  # masks
UsedBy = Sequence[tuple[Path, Used]]
_EXAMPLE = "classes: {road: [128, 64, 128], car: [0, 0, 142]}"


class ClassFile(NamedTuple):
    """What a file of classes says."""

    label_space: LabelSpace  # classes without a colour have one that is made
    table: Ids  # id -> train id, 65536 entries
    colors: dict[Color, int]  # the label of each colour that is given, void ones included
    said: frozenset[int] = frozenset()  # the ids that the file names
    ids_given: bool = False  # it says which id is which class
    transparent: bool = False  # transparent pixels count nowhere
    clear_palettes: bool = False  # those of palettes that are read by index, too: else that is a colour for the eye

    @property
    def void(self) -> int:
        """Label of what counts nowhere."""
        return ignored_in(self.table)

    def known(self, file_id: int) -> bool:
        """Whether an id is that of a class, or void."""
        return 0 <= file_id < len(self.table) and self.table[file_id] != unknown_id(self.table)


def read_class_file(path: str | Path | ClassFile) -> ClassFile:
    """Read a file of classes (one that was read is given back)::

        classes:                   # name: colour (red, green, blue), in the order of the train ids
          road: [128, 64, 128]
          car: [0, 0, 142]
        ids: {road: 7, car: [26, 27]}  # ids in masks of ids; without this line 0, 1, 2, … in the order above
        void: [0, [0, 0, 0], transparent]  # ids, colours and transparent pixels that count nowhere
        things: [car]              # countable classes
        name: mine                 # without this line the name of the folder

    Only ``classes`` is needed, and may be a list of names, or names without colours: their colours are made. The ids
    255 and 65535 are void where no class has them. Raises ProtosegError: no such file, or one that says something else.
    """
    if isinstance(path, ClassFile):
        return path
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe would never end
        raise _wrong(path, "a file", "something else")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        text = f"expected a file of the classes, {path.absolute()}, which does not exist: write one, e.g. {_EXAMPLE}"
        raise ProtosegError(f"{text}, or set data.root=FOLDER or data.dataset.classes=FILE") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise _wrong(path, "YAML", " ".join(str(error).split())) from error
    return class_file(content, path)


def class_file(content: Any, path: Path) -> ClassFile:
    """What ``read_class_file`` makes of the content of a file; ``path`` is for its messages."""
    if not isinstance(content, dict) or not set(content) <= set(_KEYS):
        raise _wrong(path, f"the keys {', '.join(_KEYS)}", [*content] if isinstance(content, dict) else content)
    colors = _classes(path, content.get("classes"))
    ids = _ids(path, content.get("ids"), list(colors))
    # Of 255 classes, the label 254 is one, so that bytes have none for ids that are not known.
    wide = len(colors) >= FILE_IGNORED
    void = WIDE_FILE_IGNORED if wide else FILE_IGNORED
    labels: dict[Color, int] = {}
    for train_id, color in enumerate(colors.values()):
        if color is not None and labels.setdefault(color, train_id) != train_id:
            raise _wrong(path, "a colour of its own for every class", f"{list(color)} twice")
    table: Ids = np.full(1 << 16, void - 1, np.uint16 if wide else np.uint8)
    table[[FILE_IGNORED, WIDE_FILE_IGNORED]] = void
    for train_id, file_ids in enumerate(ids.values()):
        table[file_ids] = train_id
    said = {*chain(*ids.values())} if content.get("ids") else set()
    entries = _list(path, "void", content.get("void"))
    for entry in entries:
        if isinstance(entry, list):
            color = _color(path, "void", entry)
            if color in labels:
                raise _wrong(path, "void colours that no class has", list(color))
            labels[color] = void
        elif _is_number(entry, WIDE_FILE_IGNORED) and table[entry] in (unknown_id(table), void):
            table[entry] = void
            said.add(entry)
        elif entry != _TRANSPARENT:
            raise _wrong(path, "void ids from 0 to 65535 that no class has", repr(entry))
    things = tuple(map(str, _list(path, "things", content.get("things"))))
    name = str(content.get("name") or path.absolute().parent.name)
    with told(lambda error: str(_wrong(path, "things that are classes", error)), ProtosegError):
        space = LabelSpace(name, tuple(colors), with_made_colors(colors.values(), labels), things=things)
    return ClassFile(space, table, labels, frozenset(said), bool(content.get("ids")), *[_TRANSPARENT in entries] * 2)


def _classes(path: Path, content: Any) -> dict[str, Color | None]:
    if not isinstance(content, dict | list) or not content:
        raise _wrong(path, f"classes with their colours ({_EXAMPLE}), or a list of their names", repr(content))
    if len(content) > MAX_CLASSES:
        raise _wrong(path, f"at most {MAX_CLASSES} classes", len(content))
    for name in content:
        if not isinstance(name, str):  # YAML reads a bare no, on or 1 as something else
            raise _wrong(path, "names of classes in quotes where they are not plain words", repr(name))
    if len(set(content)) < len(content):
        raise _wrong(path, "every class once", repr(content))
    given = content if isinstance(content, dict) else dict.fromkeys(content)
    return {name: None if color is None else _color(path, name, color) for name, color in given.items()}


def with_made_colors(colors: Iterable[Color | None], taken: Collection[Color]) -> tuple[Color, ...]:
    """The colours, with those of Pascal VOC's palette (each bit of a number in turn to red, green, blue) for None."""
    made = (
        tuple(sum((n >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))
        for n in count(1)
    )
    free = (color for color in made if color not in taken)
    return tuple(next(free) if color is None else color for color in colors)  # type: ignore[misc]


def own_space(classes: Sequence[str] | Mapping[str, Color]) -> LabelSpace:
    """Classes by their names, perhaps with colours; raises ProtosegError unless these are different texts."""
    texts = {name for name in classes if isinstance(name, str) and 0 < len(name) <= MAX_NAME}
    if isinstance(classes, str) or not classes or len(texts) < len(classes):
        raise ProtosegError(f"classes: expected a list of different names, got {classes!r}")
    colors = classes.values() if isinstance(classes, Mapping) else [None] * len(classes)
    return LabelSpace("own", tuple(classes), with_made_colors(colors, ()))


def joined(spaces: Sequence[LabelSpace]) -> LabelSpace:
    """All classes of some label spaces, by name; each has the colour of the first that has it, unless that is taken."""
    colors: dict[str, Color | None] = {}
    for name, color in chain.from_iterable(zip(space.classes, space.colors, strict=True) for space in spaces):
        colors.setdefault(name, None if color in colors.values() else color)
    made = with_made_colors(colors.values(), [color for space in spaces for color in space.colors])
    things = tuple(dict.fromkeys(name for space in spaces for name in space.things))
    return replace(spaces[0], classes=tuple(colors), colors=made, things=things)


def in_tree(space: LabelSpace, tree: Mapping[str, Any]) -> LabelSpace:
    """The classes, and behind them the groups of ``{group: [class, …] or {group: …}}``, which may be classes already.

    Classes that it does not name are at the top. Raises ProtosegError: a name twice, or that of no class.
    """

    def hang(members: Any, group: Any) -> Iterator[tuple[Any, Any]]:
        for name in members if isinstance(members, Mapping | Sequence) and not isinstance(members, str) else [members]:
            yield from hang(members[name], name) if isinstance(members, Mapping) and members[name] else ()
            yield name, group

    found = [*hang(tree, None)]  # names and their groups, members before groups
    group_of = dict(found)
    said, heads = zip(*found, strict=True) if found else ((), ())
    groups = [name for name in group_of if name in heads]
    known = {name: color for name, color in zip(space.classes, space.colors, strict=True) if name not in groups}
    names = (*known, *groups)
    if wrong := dict.fromkeys(f"{n}" for n in said if n not in names or said.count(n) > 1 or not isinstance(n, str)):
        text = f"hierarchy: expected {{group: [class, …]}} of {', '.join(space.classes)}, each once"
        raise ProtosegError(f"{text}, got {', '.join(wrong)}, which are no classes or named twice; see conf/hierarchy")
    parents = tuple(-1 if (group := group_of.get(name)) is None else names.index(group) for name in names)
    return replace(space, classes=names, colors=with_made_colors(map(known.get, names), space.colors), parents=parents)


def _ids(path: Path, content: Any, names: Sequence[str]) -> dict[str, list[int]]:
    """The ids of each class."""
    if content is None:
        return {name: [train_id] for train_id, name in enumerate(names)}
    entries = content.items() if isinstance(content, Mapping) else ()
    given = {name: ids if isinstance(ids, list) else [ids] for name, ids in entries}
    flat = [*chain(*given.values())]
    if set(given) != set(names) or not all(given.values()) or not all(_is_number(i, WIDE_UNKNOWN_ID) for i in flat):
        raise _wrong(path, f"ids: {{class: id from 0 to {WIDE_UNKNOWN_ID}, or a list}} for every class", repr(content))
    if len(set(flat)) < len(flat):
        raise _wrong(path, "ids: every id for one class alone", repr(content))
    return {name: given[name] for name in names}


def _color(path: Path, where: str, content: Any) -> Color:
    if not isinstance(content, list) or len(content) != 3 or not all(_is_number(i, 255) for i in content):
        raise _wrong(path, f"{where}: [red, green, blue], each from 0 to 255", repr(content))
    return content[0], content[1], content[2]


def _list(path: Path, key: str, content: Any) -> list[Any]:
    if not isinstance(content, list | None):
        raise _wrong(path, f"{key}: a list", repr(content))
    return content or []


def _is_number(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest


def _wrong(path: Path, expected: str, got: object) -> ProtosegError:
    return ProtosegError(f"{path}: expected {expected}, got {got}: correct it (see protoseg.data.read_class_file)")


def evidence(used: Used, file: ClassFile) -> str | None:
    """``IDS`` or ``COLORS`` where the values of one mask can be nothing else; None where they may be both, or neither.

    Grey levels and palettes whose colours all are colours of classes, or void, are colours, unless they mean the same
    as ids, or the file of classes names these very grey levels as ids. Black and 0 alone say nothing.
    """
    ids_known = used.ids is not None and all(file.known(i) for i in used.ids)
    if used.colors is None or any(color not in file.colors for color in used.colors):
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


def _tops(kind: str, file: ClassFile) -> list[int]:
    return [top for top in ([255, 65535] if kind == "16-bit" else [255]) if top not in file.said]


def _is_binary(group: UsedBy, file: ClassFile) -> bool:
    """Whether 255 (65535) is the second of two classes; raises where it may be, and as well may be void."""
    sets = [set(values.ids or ()) for _, values in group]
    used, void, names = set().union(*sets), file.void, file.label_space.classes
    tops = used.intersection(_tops(group[0][1].kind, file))
    top = max(tops, default=255)
    labels = {int(file.table[i]) for i in used if file.known(i)} - {void}
    white = file.colors.get(WHITE) if top == 255 else None
    said = top in file.said or file.table[top] != void or white == void
    apart = len(names) == 2 and used == {0, 1, top} and not any({1, top} <= ids for ids in sets)
    if said or top not in used or len(names) == 1 or not labels or (len(labels) > 1 and not apart):
        return False
    plain = len(names) == 2 and not file.ids_given and file.colors.get(BLACK) != 1 and white in (None, 1)
    if plain and not apart and 0 in used and len(tops) == 1:
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
            (u.kind, evidence(u, file), frozenset(u.ids or ()).intersection((1, *_tops(u.kind, file)))): (path, u)
            for path, u in used
        }

    def __str__(self) -> str:
        first, *_, last = self.file.label_space.classes * 2
        words = {IDS: "masks as ids", COLORS: "masks by the colours that they show"}
        top = {kind: " or ".join(map(str, _tops(kind, self.file))) for kind in self.readings}
        said = (
            (k, words.get(r, f"masks, 0 for {first!r} and {top[k]} for {last!r}")) for k, r in self.readings.items()
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
            for top in _tops(mask.kind, self.file) if reading == BINARY else ():
                ids = np.where(ids == top, ids.dtype.type(1), ids)
            mask = mask._replace(clear=None) if mask.kind == "palette" and not self.file.clear_palettes else mask
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
