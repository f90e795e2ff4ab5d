"""Lightning callbacks: prototype memory, throughput, pictures and tables."""

from protoseg import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
