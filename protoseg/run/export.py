"""What ``protoseg export`` does: write ONNX, and see that it computes what the model does."""

import time
from collections.abc import Sequence
from pathlib import Path

from protoseg.api import load
from protoseg.export.onnx import compare_onnx, export_onnx, multiple_of
from protoseg.text import Terminal
from protoseg.types import ProtosegError, require

TOLERANCE = 1e-3  # by which logits around 10 may differ: another order of sums, not another network


def export(checkpoint: str, out: Path, size: tuple[int, int] | None, network: str, trust: Sequence[str]) -> None:
    """Export, compare, and say what came out; raises as ``export_onnx``, or where the file computes something else."""
    require("onnx", "onnx", "onnxscript", "onnxruntime")  # before the minutes that the rest takes
    terminal = Terminal()
    trained = load(checkpoint, device="cpu", network=network, trust=trust)
    ranges = trained.reader.ranges if trained.reader and trained.reader.channels else ()
    started = time.perf_counter()
    with terminal.status("exporting (half a minute to some minutes)"):
        path = export_onnx(trained.network, trained.label_space, out, size, ranges)
    multiple = multiple_of(path)
    several = [(128, 192), (240, 320), (241, 319)] if multiple == 1 else [(4 * multiple, 6 * multiple)]
    difference = compare_onnx(trained.network, path, [size] if size else several, scaled=bool(ranges))
    logits, labels = f"{difference.logits:.1e}", f"{difference.labels:.4%}"
    seen = f"logits differ from torch's by at most {logits}, {labels} of the labels differ"
    if difference.logits > TOLERANCE:
        raise ProtosegError(f"export: {path} was written, but its {seen}; expected at most {TOLERANCE}: do not use it")
    free = "" if size else "any size; " if multiple == 1 else f"height and width multiples of {multiple}; "
    terminal.say(f"{path}, {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s; {free}{seen}")
