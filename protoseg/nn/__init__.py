"""Modules with state: the prototype memory and the heads."""

from protoseg.nn.heads import LinearHead, ParametricHead, PrototypeHead
from protoseg.nn.prototype_memory import PrototypeMemory

__all__ = ["LinearHead", "ParametricHead", "PrototypeHead", "PrototypeMemory"]
