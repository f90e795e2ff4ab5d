"""New classes without training: a class is K vectors, so adding, removing or merging one edits vectors, not weights."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protoseg.teach.edit import ClassEdit, apply_edit, read_edit, write_edit
    from protoseg.teach.operations import add_classes, merge_classes, refresh_class, remove_classes

__all__ = [
    "ClassEdit",
    "add_classes",
    "apply_edit",
    "merge_classes",
    "read_edit",
    "refresh_class",
    "remove_classes",
    "write_edit",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that ``protoseg teach --help`` does not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "operations" if name.endswith(("_class", "_classes")) else "edit"
    return getattr(import_module(f"{__name__}.{home}"), name)
