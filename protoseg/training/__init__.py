"""LightningModules, optimizers and schedules."""

from protoseg.training.adaptation import AdaptationModule
from protoseg.training.supervised import SupervisedModule
