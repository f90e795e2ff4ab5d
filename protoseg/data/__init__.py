"""Label spaces, data sets, augmentation and the DataModules; their names are in ``__init__.pyi``."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_STUB: Any = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))  # holds imports alone
_PLACES = {alias.name: node.module for node in _STUB.body for alias in node.names}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    """Imported when it is first used (PEP 562): to predict, or to print a help, needs no augmentation."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
