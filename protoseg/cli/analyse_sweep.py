"""``protoseg analyse sweep``: the table and the plots of a sweep, finished or not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from protoseg.analysis.sweep import BEST, compare_settings, write_tables
from protoseg.analysis.sweep_tables import print_missing, print_settings, write_figures
from protoseg.job_records import read_sweep
from protoseg.text import Terminal
from protoseg.types import ProtosegError


def add_sweep(commands: Any) -> None:
    description = (
        "Compare the settings of a sweep (train.py -m): mean and sample standard deviation over seeds as a table, CSV, "
        "Markdown and plots. A sweep that is not finished is compared by what it has."
    )
    parser = commands.add_parser(
        "sweep",
        help="the table and the plots of a sweep",
        description=description,
        epilog="Example: protoseg analyse sweep runs/sweep/2025-01-31_12-00-00",
    )
    parser.add_argument("folder", type=Path, help="the sweep's folder, which holds its manifest.json")
    parser.add_argument("--out", type=Path, help="folder for the files (default: the sweep's)")
    parser.add_argument(
        "--metric",
        default=BEST,
        help="instead of the best val/mIoU of each run the last value of this column of its metrics.csv, e.g. "
        "val/teacher_mIoU or val/IoU/Car",
    )
    parser.set_defaults(run=analyse_sweep)


def analyse_sweep(options: argparse.Namespace) -> None:
    """Print the settings of a sweep and what is missing; write ``table.csv``, ``table.md``, ``jobs.csv`` and the plots.

    Raises:
        ProtosegError: no sweep in the folder, no job of it is done, or an unknown metric.
    """
    sweep = read_sweep(options.folder)
    comparison = compare_settings(sweep, options.metric)
    if not any(setting.scores for setting in comparison.settings):
        states = [job.state for job in sweep.jobs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none begun"
        raise ProtosegError(f"{options.folder}: expected at least one job with a score, got none ({counts})")
    terminal = Terminal()
    print_settings(sweep, comparison, terminal)
    print_missing(sweep, terminal)
    out = options.out or options.folder
    for path in [*write_tables(sweep, comparison, out), *write_figures(comparison, out)]:
        terminal.say(f"Written: {path}")
