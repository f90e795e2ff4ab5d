"""Alternatives timed in turn in one process, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def paired_medians(
    steps: Mapping[str, Callable[[], object]], pairs: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each step, and median of its paired ratios to the first; a warm-up of each goes before."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(pairs + 1):
        for name, step in steps.items():
            started = _now(device)
            step()
            if run > 0:
                times[name].append(1000 * (_now(device) - started))
    base = next(iter(times.values()))
    return {
        name: (statistics.median(ms), statistics.median(a / b for a, b in zip(ms, base, strict=True)))
        for name, ms in times.items()
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
