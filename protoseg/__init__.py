"""Semantic segmentation with class prototypes: supervised (ProtoSeg) and domain-adaptive (PGPC)."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    __version__ = version("protoseg")
except PackageNotFoundError:  # a checkout on PYTHONPATH that was never installed
    __version__ = "0+unknown"


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` (PEP 562) and ``__all__`` for what a package's ``.pyi`` imports: once it is used."""
    module = sys.modules[package]
    stub: Any = ast.parse(Path(str(module.__file__)).with_suffix(".pyi").read_text("utf-8"))
    places = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    def get(name: str) -> Any:
        if name in places:
            return getattr(import_module(places[name]), name)
        if find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: [*vars(module), *places], [*places]


__getattr__, __dir__, __all__ = lazy(__name__)
