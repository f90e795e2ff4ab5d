"""``protoseg data render``: labelled street scenes, drawn."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protoseg.text import command, override, say

_STYLES = ("day", "dusk", "fog", "rain")
_LABELS = ("camvid", "cityscapes")


def add_render(commands: Any) -> None:
    """Add the command to the parser of ``protoseg data``."""
    command = commands.add_parser(
        "render",
        help="draw labelled street scenes (pip install 'protoseg[render]')",
        description="Draw labelled street scenes: OUT/images, OUT/labels and OUT/classes.yaml, to be read with "
        "data=folder data.root=OUT. A run that was stopped goes on where it ended; a larger --count adds pictures.",
        epilog="example: protoseg data render --count 2000 --style dusk --labels cityscapes data/rendered",
    )
    command.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    command.add_argument("--count", type=int, default=100, help="pictures (default 100)")
    command.add_argument("--style", choices=_STYLES, default="day", help="light and weather (default day)")
    command.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="pixels (default 640x480)")
    command.add_argument("--seed", type=int, default=0, help="the same seed draws the same streets (default 0)")
    command.add_argument("--labels", choices=_LABELS, default="camvid", help="label space (default camvid)")
    command.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    command.set_defaults(run=render)


def render(options: argparse.Namespace) -> None:
    """Draw what ``options`` ask for.

    Raises:
        ProtosegError: see ``protoseg.render``.
    """
    from protoseg.render import RenderSettings, render_dataset

    width, height = options.size
    settings = RenderSettings(options.style, width, height, options.seed, options.labels)
    workers = (os.cpu_count() or 1) if options.workers is None else options.workers
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=options.count)
        for done in render_dataset(options.out, options.count, settings, workers):
            progress.update(task, completed=done)
    again = command("data=folder", override("data.root", options.out))
    say(f"{options.count} pictures and label maps in {options.out}: train with {again}")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, e.g. 640x480, got {text!r}")
    return int(width), int(height)
