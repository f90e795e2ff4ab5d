"""Loaders whose workers starve: too little shared memory, found before the first batch, and workers that died."""

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from protoseg.types import ProtosegError

TIMEOUT = 600.0
"""Seconds that a batch of the workers is waited for."""

PREFETCH = 2  # batches that each worker makes ahead, torch's own number
SHARED_MEMORY = Path("/dev/shm")  # by which workers hand over their batches, on Linux
_REMEDY = (
    "set num_workers=0 (train.py: data.num_workers=0), use smaller batches, or give it more: docker run "
    "--shm-size=8g, or --ipc=host"
)


def check_shared_memory(num_workers: int, batch: Callable[[], int]) -> None:
    """See before the first batch whether the workers' batches fit into shared memory; warns if few of them do.

    ``batch`` gives the bytes of one, and is asked only where it matters. Raises ProtosegError: not even one fits, so
    that the workers would be killed or wait for ever.
    """
    if num_workers == 0 or not sys.platform.startswith("linux") or not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, batch()
    if free >= num_workers * PREFETCH * needed:
        return
    text = (
        f"shared memory ({SHARED_MEMORY}): expected room for {num_workers * PREFETCH} batches of the {num_workers} "
        f"loader processes, {needed / 1e6:.1f} MB each, got {free / 1e6:.1f} MB free: {_REMEDY}"
    )
    if free < needed:
        raise ProtosegError(text)
    warnings.warn(text, stacklevel=2)


def worker_failure(error: RuntimeError) -> str | None:
    """What torch says of a worker that died or gives nothing, in one message with the remedy; None for other errors."""
    cause = error.__cause__ or error.__context__  # which may name the signal
    text = f"{error} {cause or ''}"
    there = SHARED_MEMORY.is_dir()
    free = f"{shutil.disk_usage(SHARED_MEMORY).free / 1e6:.1f} MB free now" if there else "none here"
    if any(words in text for words in ("Bus error", "shared memory(shm)", "write to file </torch")):
        return f"the loader processes ran out of shared memory ({SHARED_MEMORY}, {free}): {_REMEDY}"
    if text.startswith("DataLoader timed out"):
        return (
            f"the loader processes gave no batch for {str(error).split()[-2]} seconds: where reading takes that long "
            "set data.timeout=SECONDS; else they died or hang, mostly for want of shared memory "
            f"({SHARED_MEMORY}, {free}): {_REMEDY}"
        )
    if text.startswith("DataLoader worker (pid"):
        killed = text.partition("signal: ")[2].split(".")[0].strip() or "exited unexpectedly"
        return (
            f"a loader process died ({killed}), mostly because the memory was full: set fewer num_workers (train.py: "
            "data.num_workers=0 for none) or smaller batches"
        )
    if text.startswith("Too many open files"):
        return "the loader processes need more open files than the system allows: run `ulimit -n 65536` first"
    return None
