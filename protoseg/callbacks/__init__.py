"""Lightning callbacks: prototype memory, throughput, pictures and tables."""

from protoseg.callbacks.checkpoint import Checkpoint
from protoseg.callbacks.dashboard import Dashboard
from protoseg.callbacks.loggers import wandb_logger
from protoseg.callbacks.progress import ProgressBar, PrototypeMemoryCallback, Throughput
