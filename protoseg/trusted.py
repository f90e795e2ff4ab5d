"""What the config inside a checkpoint may build: a closed list of classes for each of its sections, ``trusted.yaml``.

A checkpoint is a stranger's file. Its config names classes and their arguments; nothing outside these lists is
imported, functions are on none of them, arguments are plain values. One's own class is built by ``trust=MODULE`` alone.
"""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.utils import get_class

from protoseg.types import ProtosegError, yaml_beside

LARGEST = 65_536  # bound on every number in the section of a network: widths, depths, sizes in pixels
MAX_VALUES = 10_000  # bound on those of a section


class Slot(NamedTuple):
    """A place in a config where an object may stand, with slots inside it (``parts``) by key."""

    classes: tuple[str, ...]  # their names, as configs write them
    base: type = object  # what one from elsewhere must be, by the caller's word
    parts: Mapping[str, "Slot"] = {}
    partial: bool | None = None  # whether configs leave its arguments to be completed: always, never, or either
    each: bool = False  # it is a mapping of names to such objects


def _slot(row: Mapping[str, Any]) -> Slot:
    parts = {key: _slot(part) for key, part in row.get("parts", {}).items()}
    return Slot(**{**row, "classes": tuple(row["classes"]), "base": get_class(row["base"]), "parts": parts})


SLOTS = {key: _slot(row) for key, row in yaml_beside(__file__, "trusted.yaml").items()}
"""By section of the config. What is not here, a checkpoint never builds."""

NETWORK = ("encoder", "decoder", "segmentor", "head", "auxiliary")  # the sections that make the model


def checked_sections(config: Mapping[str, Any], sections: Sequence[str], trust: Sequence[str] = ()) -> dict[str, Any]:
    """Sections (keys of :data:`SLOTS`) of a stranger's config, in which every value was looked at; None if missing.

    ``trust`` names modules (or packages) whose classes may be built besides, by the caller's word; they are imported.
    Raises ProtosegError, which names the first value that is not allowed.
    """
    for module in trust:
        if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
            raise ProtosegError(f"trust: expected names of modules, e.g. [mypackage.heads], got {module!r}")
    chosen = {name: config.get(name) for name in sections}
    for name, section in chosen.items():
        _check_values(section, name)
        if section is not None:
            _check_object(section, SLOTS[name], name, trust)
    return chosen


def _check_object(node: Any, slot: Slot, key: str, trust: Sequence[str]) -> None:
    """A mapping with a ``_target_`` of the slot; objects inside it only where the slot has parts."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise _refused(key, f"expected a _target_ and its arguments, got {_short(node)}")
    target, foreign = node["_target_"], node["_target_"] not in slot.classes
    if slot.partial is not None and node.get("_partial_", False) is not slot.partial:
        raise _refused(f"{key}._partial_", f"expected {slot.partial}, got {_short(node.get('_partial_', False))}")
    if foreign:
        _check_trusted(target, slot, f"{key}._target_", trust)
    for name, value in node.items():
        where = f"{key}.{name}"
        if name in slot.parts and value is not None:
            named = slot.parts[name].each and isinstance(value, dict) and not any(n.startswith("_") for n in value)
            for place, node in {f"{where}.{n}": v for n, v in value.items()}.items() if named else [(where, value)]:
                _check_object(node, slot.parts[name], place, trust)
        elif foreign and isinstance(value, dict) and "_target_" in value:
            _check_object(value, Slot((), object), where, trust)
        elif name not in ("_target_", "_partial_"):
            for place, inner, _ in _inside(value, where):
                if str(inner).startswith("_"):  # it may have a meaning to Hydra
                    raise _refused(place, "it is not allowed here; expected plain values")


def _check_trusted(target: str, slot: Slot, key: str, trust: Sequence[str]) -> None:
    module, _, name = target.rpartition(".")
    if not any(target.startswith(f"{name}.") for name in trust):
        text = f"{_short(target)} is not one of the classes that a checkpoint may build here. If it is code of your own"
        remedy = f"say trust=[{_short(module or target, 80)[1:-1]}] (protoseg.load: trust=[…])"
        other = "a data set is also chosen on the command line with data=NAME"
        raise _refused(key, f"{text}, or you have read it, {remedy}; {other}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _refused(key, f"{_short(target)} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not isinstance(found, type) or not issubclass(found, slot.base):
        raise _refused(key, f"expected a class, derived from {slot.base.__name__}, got {_short(target)}")


def _check_values(section: Any, name: str) -> None:
    """Plain values, bounded in number and, for networks, in size; no interpolation, and no ``_target_`` in a string."""
    for count, (key, _, value) in enumerate(_inside(section, name)):
        if count >= MAX_VALUES:
            raise _refused(name, f"expected at most {MAX_VALUES} values, got more")
        if isinstance(value, str):
            good = len(value) <= 4096 and "${" not in value and "_target_" not in value
        elif isinstance(value, (int, float)):
            good = math.isfinite(value) and (name not in NETWORK or abs(value) <= LARGEST)
        else:
            good = value is None or isinstance(value, (dict, list, tuple))
        if not good:
            raise _refused(key, f"expected a plain value, got {_short(value)}")


def _inside(node: Any, key: str, depth: int = 0) -> Iterator[tuple[str, Any, Any]]:
    """All that is inside a value, at any depth: where it is, its key or index there, and itself."""
    if depth > 16:
        raise _refused(key[:80], "expected at most 16 levels, got more")
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, value in pairs:
        if isinstance(node, dict) and not isinstance(name, str):
            raise _refused(key, f"expected keys that are strings, got {_short(name)}")
        place = f"{key}.{str(name)[:80]}"
        yield place, name, value
        yield from _inside(value, place, depth + 1)


def _refused(key: str, reason: str) -> ProtosegError:
    return ProtosegError(f"checkpoint config {key}: {reason}")


def _short(value: object, length: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
