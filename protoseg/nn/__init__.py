"""Modules with state: the prototype memory, the queues, the teacher and the heads."""

from protoseg import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
