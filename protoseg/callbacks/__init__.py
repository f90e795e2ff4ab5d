"""Lightning callbacks: prototype memory, throughput, pictures and tables."""

from protoseg import lazy

__getattr__, __all__ = lazy(__file__)
