"""Label spaces, data sets, augmentation and the DataModules; their names are in ``__init__.pyi``."""

from protoseg import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
