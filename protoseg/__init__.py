"""Semantic segmentation with class prototypes: supervised (ProtoSeg) and domain-adaptive (PGPC)."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LAZY = {"Model": "api", "Prediction": "api", "load": "api", "wrap": "api"}
_LAZY |= {"evaluate": "run.library", "build": "run.library"}

try:
    __version__ = version("protoseg")
except PackageNotFoundError:  # a checkout on PYTHONPATH that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """``protoseg.load`` and its kin, imported when they are first used: ``import protoseg`` stays light (PEP 562)."""
    if name in _LAZY:
        return getattr(import_module(f"protoseg.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
