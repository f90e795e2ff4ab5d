"""Semantic segmentation with class prototypes: supervised (ProtoSeg) and domain-adaptive (PGPC)."""

import ast
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    __version__ = version("protoseg")
except PackageNotFoundError:  # a checkout on PYTHONPATH that was never installed
    __version__ = "0+unknown"


def lazy(file: str) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` (PEP 562) and ``__all__`` of a package: what its ``.pyi`` imports, so late that it is light."""
    stub: Any = ast.parse(Path(file).with_suffix(".pyi").read_text("utf-8"))
    places = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    def get(name: str) -> Any:
        if name in places:
            return getattr(import_module(places[name]), name)
        raise AttributeError(f"{file} has no attribute {name!r}")

    return get, [*places]


__getattr__, __all__ = lazy(__file__)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
