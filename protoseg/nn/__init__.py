"""Modules with state: the prototype memory and the heads."""

from protoseg.nn.discriminant import Discriminant
from protoseg.nn.heads import AtrousHead, Head, LinearHead, LogitsHead, ParametricHead, PrototypeHead
from protoseg.nn.prototype_memory import PrototypeMemory
