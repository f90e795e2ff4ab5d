"""Label spaces, data sets, augmentation and the DataModules; their names are in ``__init__.pyi``."""

from protoseg import lazy

__getattr__, __all__ = lazy(__file__)
