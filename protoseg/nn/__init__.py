"""Modules with state: the prototype memory and the heads."""

from protoseg.nn.heads import ParametricHead, PrototypeHead
from protoseg.nn.prototype_memory import PrototypeMemory

__all__ = ["ParametricHead", "PrototypeHead", "PrototypeMemory"]
