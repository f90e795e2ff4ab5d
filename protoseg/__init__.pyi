from protoseg.api import Model as Model
from protoseg.api import Prediction as Prediction
from protoseg.api import load as load
from protoseg.api import wrap as wrap
from protoseg.run.library import build as build
from protoseg.run.library import evaluate as evaluate

__version__: str

def lazy(package: str) -> tuple[object, object, list[str]]: ...
