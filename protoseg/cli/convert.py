"""``python -m protoseg.convert``: a published file becomes a checkpoint."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from protoseg.cli import CONFIG_DIR
from protoseg.cli.errors import run_with_clear_errors
from protoseg.text import Terminal, command


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m protoseg.convert``."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.convert",
        description="Write published weights (DAFormer, HRDA, MIC, ProtoSeg, SegFormer) as a checkpoint that "
        "evaluate.py, protoseg.load and the other commands open; ImageNet weights as a file for encoder.weights=. The "
        "kind is recognised by the names in the file, of which nothing is run.",
    )
    parser.add_argument("file", type=Path, help="e.g. latest.pth")
    parser.add_argument("out", type=Path, help="the checkpoint to write, e.g. daformer.ckpt")
    parser.add_argument("--network", default="student", help="student, or of domain adaptation teacher")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings as of train.py, e.g. data=cityscapes_to_acdc"
    )
    options = parser.parse_intermixed_args(arguments)
    run_with_clear_errors(lambda: run_convert(options), CONFIG_DIR, "train")


def run_convert(options: argparse.Namespace) -> None:
    """Convert, and say what came out and what may be done with it; raises as :func:`protoseg.convert.convert`."""
    from protoseg.convert import convert

    terminal, started = Terminal(), time.perf_counter()
    with terminal.status("converting"):
        kind = convert(options.file, options.out, options.network, options.overrides)
    what = (
        "weights of an encoder"
        if kind is None
        else kind.name
        if kind.encoder_only
        else f"{kind.name}, {options.network}"
    )
    size, seconds = options.out.stat().st_size / 1e6, time.perf_counter() - started
    terminal.say(f"{options.out}: {what}, {size:.1f} MB, {seconds:.1f} s")
    if kind and not kind.encoder_only:
        terminal.say(command("python", "evaluate.py", f"ckpt_path={options.out}"))
    else:
        terminal.say(command("python", "train.py", f"encoder.weights={options.out}"))
