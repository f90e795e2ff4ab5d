"""``python -m protoseg.analysis sweep``: the table and the plots of a sweep, finished or not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from protoseg.analysis.sweep import BEST, Comparison, compare_settings, missing, table, write_tables
from protoseg.files import write_file
from protoseg.sweep import Sweep, read_sweep, short_names, short_value
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
        epilog="Example: python -m protoseg.analysis sweep runs/sweep/2025-01-31_12-00-00",
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


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw ``scores.png``, and ``heatmap.png`` where two numbers were swept; returns their paths."""
    from protoseg.analysis.sweep_figures import heat_figure, score_figure

    figures = {"scores.png": score_figure(comparison), "heatmap.png": heat_figure(comparison)}
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            write_file(folder / name, figure.savefig)
            paths.append(folder / name)
    return paths


def print_settings(sweep: Sweep, comparison: Comparison, terminal: Terminal) -> None:
    """Print the table of the settings."""
    header, rows = table(comparison)
    shown = Table(title="Mean ± sample standard deviation over n runs")
    for i, name in enumerate(header):
        shown.add_column(name, justify="left" if i < len(comparison.names) else "right")
    for row in rows:
        shown.add_row(*row)
    terminal.print(shown)


def print_missing(sweep: Sweep, terminal: Terminal) -> None:
    """Print which jobs have no result, and why."""
    without = missing(sweep)
    if without:
        terminal.print(f"Without a result: {len(without)} of {len(sweep.jobs)} jobs", style="yellow")
        for job in without:
            reason = f": {job.error}" if job.error else ""
            terminal.say(f"  job {job.number} ({sweep.name(job)}): {job.state}{reason}")


def print_jobs(sweep: Sweep, terminal: Terminal) -> None:
    """Print every job with its state, score and time."""
    names = short_names(sweep.swept)
    shown = Table(title=f"Jobs of {sweep.folder.name}")
    for name in ("job", *names.values(), "state", "mIoU (%)", "seconds"):
        shown.add_column(name, justify="left" if name in ("state", *names.values()) else "right")
    styles = {"done": "green", "failed": "red"}
    for job in sweep.jobs:
        score = f"{100 * job.score:.1f}" if job.score == job.score else ""
        values = [short_value(job.values.get(key, "")) for key in names]
        state = Text(job.state, styles.get(job.state, "yellow"))
        shown.add_row(str(job.number), *values, state, score, f"{job.seconds:.0f}" if job.seconds else "")
    terminal.print(shown)
    for job in sweep.jobs:
        if job.state == "failed":
            message = f"Job {job.number} failed: {job.error} ({job.folder}/error.log)"
            terminal.print(message, soft_wrap=True, style="red")
