"""The YAML file that names the classes of one's own data."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protoseg.data.files import Color
from protoseg.data.label_spaces import FILE_IGNORED, WIDE_FILE_IGNORED, WIDE_UNKNOWN_ID, Ids, ignored_in, unknown_id
from protoseg.types import MAX_CLASSES, LabelSpace, ProtosegError

_KEYS = ("name", "classes", "ids", "void", "things")
_TRANSPARENT = "transparent"
_EXAMPLE = "classes: {road: [128, 64, 128], car: [0, 0, 142]}"


class ClassFile(NamedTuple):
    """What a file of classes says."""

    label_space: LabelSpace  # classes without a colour have one that is made
    table: Ids  # id -> train id, 65536 entries
    colors: dict[Color, int]  # the label of each colour that is given, void ones included
    said: frozenset[int] = frozenset()  # the ids that the file names
    ids_given: bool = False  # it says which id is which class
    transparent: bool = False  # transparent pixels count nowhere

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
    try:
        space = LabelSpace(name, tuple(colors), with_made_colors(colors.values(), labels), things=things)
    except ProtosegError as error:
        raise _wrong(path, "things that are classes", error) from error
    return ClassFile(space, table, labels, frozenset(said), bool(content.get("ids")), _TRANSPARENT in entries)


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
    if isinstance(classes, str) or not classes or len({str(name) for name in classes}) < len(classes):
        raise ProtosegError(f"classes: expected a list of different names, got {classes!r}")
    colors = classes.values() if isinstance(classes, Mapping) else [None] * len(classes)
    return LabelSpace("own", tuple(classes), with_made_colors(colors, ()))


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
