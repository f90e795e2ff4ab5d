"""Operations of a step that make a GPU's host wait: counted by what they are on a CPU, by CUDA itself on a GPU."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ROOT = str(Path(__file__).parents[1])
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "bincount", "is_nonzero", "equal")


class CountStops(TorchDispatchMode):
    """While entered, counts what would make the host wait if the tensors were on a GPU; ``seen`` says what and where.

    Numbers that are drawn on the CPU in order to be read there (``tolist``) are not dispatched, and not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index_put")) and any(map(_is_mask, args[1:2]))
        if name.startswith(_WAITING) or by_mask:
            caller = _caller()
            if caller is not None:
                self.seen[f"{name}{' by a mask' if by_mask else ''} in {caller}"] += 1
        return func(*args, **(kwargs or {}))


def count_stops(step: Callable[[], object], device: torch.device) -> Counter[str]:
    """How often ``step`` makes the host wait, by what waits and where."""
    if device.type != "cuda":
        with CountStops() as counter:
            step()
        return counter.seen
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Not "synchronizing" alone, which is in the warning of the mode itself, too.
    waits = [warning for warning in told if "called a synchronizing" in str(warning.message)]
    return Counter(f"wait in {Path(warning.filename).name}:{warning.lineno}" for warning in waits)


def _is_mask(indices: Any) -> bool:
    return isinstance(indices, (list, tuple)) and any(
        isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices
    )


def _caller() -> str | None:
    """The innermost function of this project or of whoever called; None for an optimizer's step count on a CPU."""
    frames = [f for f in traceback.extract_stack()[:-2] if Path(f.filename).name != Path(__file__).name]
    if any("/torch/optim/" in f.filename and f.name != "update_parameters" for f in frames):
        return None
    ours = [f for f in frames if f.filename.startswith((f"{_ROOT}/protoseg", f"{_ROOT}/benchmarks"))]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}: {frame.name}"
