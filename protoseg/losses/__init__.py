"""Loss terms: the record of a training step, :class:`Step`, to a scalar; the module sums them with their weights."""

from protoseg import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
