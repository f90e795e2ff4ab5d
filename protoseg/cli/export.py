"""``protoseg export``: a checkpoint becomes an ONNX file, compared with the model it was made from."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from protoseg.cli.tool import add_trust
from protoseg.run.errors import run_with_clear_errors
from protoseg.text import Terminal
from protoseg.types import ProtosegError

TOLERANCE = 1e-3
"""Logits may differ by so much, of values around 10: another order of sums, not another network."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg export``."""
    parser = argparse.ArgumentParser(
        prog="protoseg export",
        description="Write a checkpoint's model, prototypes included, as ONNX. Input: uint8 RGB images, b 3 h w. "
        "Outputs: class ids b h w, and logits on the decoder's grid. The file is compared with the model on random "
        "images.",
    )
    parser.add_argument("checkpoint", help="RUN/checkpoints/best.ckpt, a saved model's folder, or hf://user/name")
    parser.add_argument("out", type=Path, help="the file to write, e.g. model.onnx")
    parser.add_argument(
        "--size", type=_size, metavar="HEIGHTxWIDTH", help="for images of one size; without it any multiples of 32"
    )
    parser.add_argument("--network", default="student", help="student, or of domain adaptation teacher")
    add_trust(parser)
    options = parser.parse_args(arguments)
    run_with_clear_errors(lambda: run_export(options), "evaluate")


def run_export(options: argparse.Namespace) -> None:
    """Export, compare, and say what came out.

    Raises:
        ProtosegError: see ``export_onnx``; or the file computes something else than the model.
    """
    from protoseg.api import load
    from protoseg.export.onnx import compare_onnx, export_onnx, require

    require("onnx", "onnxscript", "onnxruntime")  # before the minutes that the rest takes
    terminal = Terminal()
    trained = load(options.checkpoint, device="cpu", network=options.network, trust=options.trust)
    started = time.perf_counter()
    with terminal.status("exporting (half a minute to some minutes)"):
        path = export_onnx(trained.network, trained.label_space, options.out, options.size)
    multiple = max(trained.network.encoder.strides)
    sizes = [options.size] if options.size else [(4 * multiple, 6 * multiple), (7 * multiple, 3 * multiple)]
    difference = compare_onnx(trained.network, path, sizes)
    seen = (
        f"logits differ from torch's by at most {difference.logits:.1e}, {difference.labels:.4%} of the labels differ"
    )
    if difference.logits > TOLERANCE:
        raise ProtosegError(f"export: {path} was written, but its {seen}; expected at most {TOLERANCE}: do not use it")
    terminal.say(f"{path}, {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s; {seen}")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, e.g. 512x1024, got {text!r}")
    return int(height), int(width)
