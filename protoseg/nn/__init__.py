"""Modules with state: the prototype memory, the queues, the teacher and the heads."""

from protoseg.nn.discriminant import Discriminant
from protoseg.nn.heads import AtrousHead, Head, LinearHead, LogitsHead, ParametricHead, PrototypeHead
from protoseg.nn.prototype_memory import Observation, PrototypeMemory
from protoseg.nn.queues import ClassQueues
from protoseg.nn.teacher import EMATeacher
