"""``protoseg data export``: predictions in the format of a benchmark server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from protoseg.data.export import FORMATS, export_predictions
from protoseg.text import say


def add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="predictions in the format of a benchmark server",
        description="Write the label PNGs of evaluate.py with the ids and the names that a benchmark server wants.",
        epilog="example: python evaluate.py ckpt_path=BEST.ckpt mode=predict images=data/cityscapes/leftImg8bit/test "
        "paths.output=RUN && protoseg data export cityscapes RUN/labels RUN/submission",
    )
    command.add_argument("format", choices=FORMATS, help="the benchmark")
    command.add_argument("labels", type=Path, help="folder of label PNGs: labels/ of a run of evaluate.py")
    command.add_argument("out", type=Path, help="folder of the files for the server")
    command.set_defaults(run=export)


def export(options: argparse.Namespace) -> None:
    """Write the files; raises as ``export_predictions``."""
    written = export_predictions(options.labels, options.out, options.format)
    say(f"{len(written)} files for {options.format}: {options.out}")
