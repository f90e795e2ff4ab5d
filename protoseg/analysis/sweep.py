"""What a sweep showed: scores by setting, mean and spread over seeds, and what is missing."""

import math
import statistics
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from protoseg.evaluation.curves import read_log
from protoseg.files import write_file
from protoseg.job_records import Job, Sweep, short_names, short_value
from protoseg.text import Terminal, markdown_table, markdown_text, write_csv
from protoseg.types import ProtosegError

BEST = "mIoU"
"""The metric unless another is chosen: the best val/mIoU of each run."""


class Setting(NamedTuple):
    """The jobs that differ in nothing but their seed: their values of the other swept keys; scores of those done."""

    values: tuple[str, ...]
    jobs: tuple[Job, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; NaN for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


class Comparison(NamedTuple):
    """The settings of a sweep, by a metric; ``names`` are of the swept keys, in the order of a setting's values."""

    metric: str
    names: tuple[str, ...]
    settings: tuple[Setting, ...]

    @property
    def scale(self) -> int:
        """IoU and accuracy are shown in percent."""
        return 100 if "IoU" in self.metric or "accuracy" in self.metric else 1

    def number(self, value: float) -> str:
        """The value as printed, nothing for NaN."""
        return "" if math.isnan(value) else f"{100 * value:.1f}" if self.scale == 100 else f"{value:.4g}"

    @property
    def title(self) -> str:
        return f"{self.metric} (%)" if self.scale == 100 else self.metric


def compare_settings(sweep: Sweep, metric: str = BEST) -> Comparison:
    """Group the jobs of a sweep, which may be unfinished, by everything swept but the seed.

    The metric is :data:`BEST`, or a column of the runs' ``metrics.csv``, of which the last value counts; raises
    ProtosegError where a run's log has none such.
    """
    keys = [key for key in sweep.swept if key != "seed"]
    names = short_names(sweep.swept)
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in sweep.jobs:
        groups.setdefault(tuple(job.values.get(key, "") for key in keys), []).append(job)
    settings = []
    for values, jobs in groups.items():
        scores = [job.score if metric == BEST else last_logged(job, metric) for job in jobs if job.state == "done"]
        settings.append(Setting(values, tuple(jobs), tuple(score for score in scores if not math.isnan(score))))
    return Comparison(metric, tuple(names[key] for key in keys), tuple(settings))


def last_logged(job: Job, column: str) -> float:
    """The last value of a column of the job's ``metrics.csv``; raises ProtosegError without such a column."""
    rows = read_log(job.folder)
    values = [row[column] for row in rows if row.get(column)]
    if not values:
        known = ", ".join(name for name in (rows[0] if rows else ()) if name.startswith("val/")) or "none"
        raise ProtosegError(f"metric {column!r}: not in the log of {job.folder}; it has of validations: {known}")
    return float(values[-1])


def missing(sweep: Sweep) -> list[Job]:
    """The jobs without a result."""
    return [job for job in sweep.jobs if job.state != "done"]


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows to read: settings, mean ± sample standard deviation over seeds, their number, each score."""
    header = [*comparison.names, comparison.title, "n", "each"]
    rows = []
    for setting in comparison.settings:
        spread = f" ± {comparison.number(setting.std)}" if len(setting.scores) > 1 else ""
        done, jobs = len(setting.scores), len(setting.jobs)
        number = f"{done} of {jobs}" if done < jobs else str(done)
        each = ", ".join(map(comparison.number, setting.scores))
        rows.append([*map(short_value, setting.values), f"{comparison.number(setting.mean)}{spread}", number, each])
    return header, rows


def exact_table(comparison: Comparison) -> list[list[object]]:
    """The same for programs, header first: numbers in full, an empty cell where there is none."""
    rows: list[list[object]] = [[*comparison.names, "metric", "mean", "std", "n", "jobs", "seconds"]]
    for setting in comparison.settings:
        numbers = ["" if math.isnan(value) else value for value in (setting.mean, setting.std)]
        seconds = [job.seconds for job in setting.jobs if job.state == "done"]
        mean_seconds = round(statistics.fmean(seconds), 1) if seconds else ""
        counts = (len(setting.scores), len(setting.jobs), mean_seconds)
        rows.append([*setting.values, comparison.metric, *numbers, *counts])
    return rows


def jobs_table(sweep: Sweep) -> list[list[object]]:
    """One row per job, header first."""
    names = short_names(sweep.swept)
    rows: list[list[object]] = [["job", *names.values(), "state", BEST, "seconds", "error"]]
    for job in sweep.jobs:
        score = "" if math.isnan(job.score) else job.score
        values = (job.values.get(key, "") for key in names)
        rows.append([job.number, *values, job.state, score, round(job.seconds, 1), job.error])
    return rows


def markdown(sweep: Sweep, comparison: Comparison) -> str:
    """The table of the settings, and the jobs without a result, as Markdown."""
    header, rows = table(comparison)
    without = [
        "- " + markdown_text(f"job {job.number} ({sweep.name(job)}): {job.state}. {job.error}".rstrip(". "))
        for job in missing(sweep)
    ]
    note = f"{comparison.title}: mean ± sample standard deviation over n runs."
    parts = [f"# {markdown_text(sweep.folder.name)}", markdown_table(header, rows, len(comparison.names)), note]
    if without:
        parts += [f"Without a result: {len(without)} of {len(sweep.jobs)} jobs.", "\n".join(without)]
    return "\n\n".join(parts) + "\n"


def write_tables(sweep: Sweep, comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``table.csv``, ``table.md`` and ``jobs.csv``; returns their paths."""
    paths = [folder / name for name in ("table.csv", "table.md", "jobs.csv")]
    write_file(paths[0], lambda path: write_csv(path, exact_table(comparison)))
    write_file(paths[1], lambda path: path.write_text(markdown(sweep, comparison), encoding="utf-8"))
    write_file(paths[2], lambda path: write_csv(path, jobs_table(sweep)))
    return paths


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
    left = range(len(comparison.names))
    terminal.table("Mean ± sample standard deviation over n runs", *table(comparison), left=left)


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
    styles: dict[str, str] = {"done": "green", "failed": "red"}
    rows: list[list[str | Text]] = []
    for job in sweep.jobs:
        score = f"{100 * job.score:.1f}" if job.score == job.score else ""
        values = [short_value(job.values.get(key, "")) for key in names]
        state = Text(job.state, styles.get(job.state, "yellow"))
        rows.append([str(job.number), *values, state, score, f"{job.seconds:.0f}" if job.seconds else ""])
    header = ("job", *names.values(), "state", "mIoU (%)", "seconds")
    terminal.table(f"Jobs of {sweep.folder.name}", header, rows, left=range(1, 2 + len(names)))
    for job in sweep.jobs:
        if job.state == "failed":
            message = f"Job {job.number} failed: {job.error} ({job.folder}/error.log)"
            terminal.print(message, soft_wrap=True, style="red")
