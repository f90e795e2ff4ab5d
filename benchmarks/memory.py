"""How much memory a step needs at its worst, above what was in use before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_megabytes(step: Callable[[], object], device: torch.device) -> float | None:
    """Peak of one run, after a first one, in 10^6 bytes: of torch's allocator, or on a CPU of the process.

    None where the system does not tell (only Linux does). On a CPU run it before ``keep_freed_memory``: memory that was
    freed but kept would count as in use.
    """
    step()  # what is made once and kept is not the step's
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # glibc alone can return to the system what was freed
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        _RESET.write_text("5")  # the peak starts anew from what is in use
    except OSError:
        return None
    before_kb = _kilobytes("VmRSS")
    step()
    return max(_kilobytes("VmHWM") - before_kb, 0) * 1024 / 1e6


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
