"""Semantic segmentation with class prototypes: supervised (ProtoSeg) and domain-adaptive (PGPC)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = ("Model", "Prediction", "load")


def __getattr__(name: str) -> Any:
    """``protoseg.load`` and its kin, imported when they are first used: ``import protoseg`` stays light (PEP 562)."""
    if name in _LAZY:
        return getattr(import_module("protoseg.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
