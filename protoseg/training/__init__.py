"""LightningModules, parameter groups, schedules."""

from protoseg.training.supervised import SupervisedModule

__all__ = ["SupervisedModule"]
