"""Lightning callbacks: prototype memory, throughput, pictures and tables."""

from protoseg.callbacks.cached import CachedViews
from protoseg.callbacks.checkpoint import Checkpoint
from protoseg.callbacks.dashboard import Dashboard
from protoseg.callbacks.loggers import ProgressBar, PrototypeMemoryCallback, Throughput, wandb_logger
