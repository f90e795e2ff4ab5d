"""Alternatives timed in turn in one process, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Of one alternative: median milliseconds, and medians of its paired ratios."""

    milliseconds: float
    over_first: float
    over_previous: float


def paired_medians(
    steps: Mapping[str, Callable[[], object]], pairs: int, device: torch.device, busy: bool = False
) -> dict[str, Timing]:
    """The timing of each step; a warm-up of each goes before.

    On a ``busy`` CPU it is the processor time of all threads of this process, which others take nothing of.
    """
    now = time.process_time if busy else lambda: _now(device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(pairs + 1):
        for name, step in steps.items():
            started = now()
            step()
            if run > 0:
                times[name].append(1000 * (now() - started))
    names, runs = list(times), list(times.values())
    before = [runs[0], *runs]
    return {
        name: Timing(statistics.median(ms), _ratio(ms, runs[0]), _ratio(ms, last))
        for name, ms, last in zip(names, runs, before, strict=False)
    }


def _ratio(ms: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ms, base, strict=True))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
