"""Modules with state: the prototype memory and the heads."""

from protoseg.nn.heads import Head, LinearHead, ParametricHead, PrototypeHead
from protoseg.nn.prototype_memory import PrototypeMemory
