"""A sweep on the terminal and on disk: its jobs, its settings, what is missing, its plots."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from protoseg.analysis.sweep import Comparison, missing, table
from protoseg.files import write_file
from protoseg.job_records import Sweep, short_names, short_value
from protoseg.text import Terminal


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw ``scores.png``, and ``heatmap.png`` where two numbers were swept; returns their paths."""
    from protoseg.analysis.sweep_figures import heat_figure, score_figure

    drawn = {folder / "scores.png": score_figure(comparison), folder / "heatmap.png": heat_figure(comparison)}
    figures = {path: figure for path, figure in drawn.items() if figure is not None}
    for path, figure in figures.items():
        write_file(path, figure.savefig)
    return list(figures)


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
