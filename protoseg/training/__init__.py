"""LightningModules, optimizers and schedules."""

from protoseg.training.adaptation import AdaptationModule
from protoseg.training.base import SupervisedModule
