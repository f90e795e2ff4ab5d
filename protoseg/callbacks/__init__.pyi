from protoseg.callbacks.cached import CachedViews as CachedViews
from protoseg.callbacks.checkpoint import Checkpoint as Checkpoint
from protoseg.callbacks.dashboard import Dashboard as Dashboard
from protoseg.callbacks.loggers import ProgressBar as ProgressBar
from protoseg.callbacks.loggers import PrototypeMemoryCallback as PrototypeMemoryCallback
from protoseg.callbacks.loggers import Throughput as Throughput
from protoseg.callbacks.loggers import wandb_logger as wandb_logger
