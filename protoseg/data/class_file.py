"""The YAML file that names the classes of one's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from protoseg.data.files import Color
from protoseg.data.label_spaces import UNKNOWN_ID, id_table
from protoseg.data.label_spaces.tables import FILE_IGNORED
from protoseg.types import LabelSpace, ProtosegError

_KEYS = ("name", "classes", "ids", "void", "things")
_EXAMPLE = "classes: {road: [128, 64, 128], car: [0, 0, 142]}"


class ClassFile(NamedTuple):
    """What a file of classes says: the classes, id -> train id (256 entries), and the id of each colour."""

    label_space: LabelSpace
    id_table: NDArray[np.uint8]
    color_ids: dict[Color, int]


def read_class_file(path: str | Path) -> ClassFile:
    """Read a file of classes::

        classes:                   # name: colour (red, green, blue), in the order of the train ids
          road: [128, 64, 128]
          car: [0, 0, 142]
        ids: {road: 7, car: 26}    # ids in masks of ids; without this line 0, 1, 2, … in the order above
        void: [0, [0, 0, 0]]       # ids and colours that count nowhere; the id 255 always is one
        things: [car]              # countable classes
        name: mine                 # without this line the name of the folder

    Only ``classes`` is needed.

    Raises:
        ProtosegError: no such file, or one that says something else.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe would never end
        raise _wrong(path, "a file", "something else")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise ProtosegError(
            f"expected a file of the classes and their colours, {path.absolute()}, which does not exist: write one, "
            f"e.g. {_EXAMPLE} (see protoseg.data.read_class_file), or set data.root=FOLDER or "
            "data.dataset.classes=FILE"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise _wrong(path, "YAML", " ".join(str(error).split())) from error
    if not isinstance(content, dict) or not set(content) <= set(_KEYS):
        raise _wrong(path, f"the keys {', '.join(_KEYS)}", content if not isinstance(content, dict) else [*content])
    colors = _classes(path, content.get("classes"))
    ids = _ids(path, content.get("ids"), list(colors))
    color_ids: dict[Color, int] = {}
    for name, color in colors.items():
        if color in color_ids:
            raise _wrong(path, "a colour of its own for every class", f"{list(color)} twice")
        color_ids[color] = ids[name]
    table = id_table({file_id: train_id for train_id, file_id in enumerate(ids.values())})
    for entry in _list(path, "void", content.get("void")):
        if isinstance(entry, list):
            color = _color(path, "void", entry)
            if color in color_ids:
                raise _wrong(path, "void colours that no class has", list(color))
            color_ids[color] = FILE_IGNORED
        elif _is_id(entry) and table[entry] in (UNKNOWN_ID, FILE_IGNORED):
            table[entry] = FILE_IGNORED
        else:
            raise _wrong(path, "void ids from 0 to 255 that no class has", repr(entry))
    things = tuple(map(str, _list(path, "things", content.get("things"))))
    name = str(content.get("name") or path.absolute().parent.name)
    try:
        space = LabelSpace(name, tuple(colors), tuple(colors.values()), things=things)
    except ProtosegError as error:
        raise _wrong(path, "things that are classes", error) from error
    return ClassFile(space, table, color_ids)


def _classes(path: Path, content: Any) -> dict[str, Color]:
    if not isinstance(content, dict) or not content:
        raise _wrong(path, f"classes with their colours ({_EXAMPLE})", repr(content))
    if len(content) > UNKNOWN_ID:
        raise _wrong(path, f"at most {UNKNOWN_ID} classes", len(content))
    for name in content:
        if not isinstance(name, str):  # YAML reads a bare no, on or 1 as something else
            raise _wrong(path, "names of classes in quotes where they are not plain words", repr(name))
    return {name: _color(path, name, color) for name, color in content.items()}


def _ids(path: Path, content: Any, names: Sequence[str]) -> dict[str, int]:
    if content is None:
        return {name: train_id for train_id, name in enumerate(names)}
    good = isinstance(content, Mapping) and set(content) == set(names)
    if not good or not all(_is_id(i) and i < UNKNOWN_ID for i in content.values()):
        raise _wrong(path, f"ids: {{class: id from 0 to {UNKNOWN_ID - 1}}} for every class", repr(content))
    if len(set(content.values())) < len(names):
        raise _wrong(path, "ids: an id of its own for every class", repr(content))
    return {name: content[name] for name in names}


def _color(path: Path, where: str, content: Any) -> Color:
    if not isinstance(content, list) or len(content) != 3 or not all(map(_is_id, content)):
        raise _wrong(path, f"{where}: [red, green, blue], each from 0 to 255", repr(content))
    return content[0], content[1], content[2]


def _list(path: Path, key: str, content: Any) -> list[Any]:
    if not isinstance(content, list | None):
        raise _wrong(path, f"{key}: a list", repr(content))
    return content or []


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _wrong(path: Path, expected: str, got: object) -> ProtosegError:
    return ProtosegError(
        f"{path}: expected {expected}, got {got}: correct the file (see protoseg.data.read_class_file)"
    )
