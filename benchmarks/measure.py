"""Memory and time of the alternatives of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import peak_megabytes
from benchmarks.paired import paired_medians
from benchmarks.report import Measured
from protoseg.allocator import keep_freed_memory

Steps = Callable[..., dict[str, Callable[[], object]]]


def measure(steps: Steps, settings: list[Any], pairs: int, device: torch.device, busy: bool = False) -> list[Measured]:
    """Peaks of memory, then times, with freed memory kept as ``train.py`` keeps it; ``busy``: of ``paired_medians``."""
    megabytes = [
        {name: peak_megabytes(step, device) for name, step in steps(setting, device).items()} for setting in settings
    ]
    if device.type == "cpu":
        keep_freed_memory()
    return [
        Measured(setting, paired_medians(steps(setting, device), pairs, device, busy), peaks)
        for setting, peaks in zip(settings, megabytes, strict=True)
    ]
