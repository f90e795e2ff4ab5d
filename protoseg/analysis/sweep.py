"""What a sweep showed: scores by setting, mean and spread over seeds, what is missing; needs no torch for tables."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.text import Text

from protoseg.evaluation.curves import read_log
from protoseg.files import without_nan, write_file, write_text
from protoseg.job_records import Job, Sweep, short_names, short_value
from protoseg.text import Terminal, figure_text, markdown_table, markdown_text, number_in, write_csv
from protoseg.types import ProtosegError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST = "mIoU"  # the metric unless another is chosen: the best val/mIoU of each run


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
    ProtosegError where no run's log has one such.
    """
    keys = [key for key in sweep.swept if key != "seed"]
    names = short_names(sweep.swept)
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in sweep.jobs:
        groups.setdefault(tuple(job.values.get(key, "") for key in keys), []).append(job)
    settings = []
    last = {} if metric == BEST else last_logged([job for job in sweep.jobs if job.state == "done"], metric)
    for values, jobs in groups.items():
        scores = [job.score if metric == BEST else last[job.number] for job in jobs if job.state == "done"]
        settings.append(Setting(values, tuple(jobs), tuple(score for score in scores if not math.isnan(score))))
    return Comparison(metric, tuple(names[key] for key in keys), tuple(settings))


def last_logged(jobs: Sequence[Job], column: str) -> dict[int, float]:
    """The last value of a column of each job's ``metrics.csv``, or NaN; raises ProtosegError if no job has one."""
    logs = {job.number: read_log(job.folder) for job in jobs}
    found = {number: [row[column] for row in rows if row.get(column)] for number, rows in logs.items()}
    if jobs and not any(found.values()):
        known = ", ".join(
            sorted({name for rows in logs.values() for row in rows for name in row if name.startswith("val/")})
        )
        raise ProtosegError(f"metric {column!r}: not in the log of any job; of validations there are {known or 'none'}")
    return {number: float(values[-1]) if values else math.nan for number, values in found.items()}


def missing(sweep: Sweep) -> tuple[str, list[str]]:
    """How many jobs have no result, and a line for each of these."""
    without = [job for job in sweep.jobs if job.state != "done"]
    lines = [f"job {job.number} ({sweep.name(job)}): {job.state}. {job.error}".rstrip(". ") for job in without]
    return f"Without a result: {len(without)} of {len(sweep.jobs)} jobs", lines


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows to read: settings, mean ± sample standard deviation over seeds, their number, each score."""
    rows = []
    for setting in comparison.settings:
        spread = f" ± {comparison.number(setting.std)}" if len(setting.scores) > 1 else ""
        done, jobs = len(setting.scores), len(setting.jobs)
        number = f"{done} of {jobs}" if done < jobs else str(done)
        each = ", ".join(map(comparison.number, setting.scores))
        rows.append([*map(short_value, setting.values), f"{comparison.number(setting.mean)}{spread}", number, each])
    return [*comparison.names, comparison.title, "n", "each"], rows


def exact_table(comparison: Comparison) -> list[list[object]]:
    """The same for programs, header first: numbers in full, an empty cell where there is none."""
    rows: list[list[object]] = [[*comparison.names, "metric", "mean", "std", "n", "jobs", "seconds"]]
    for setting in comparison.settings:
        seconds = [job.seconds for job in setting.jobs if job.state == "done"]
        mean_seconds = round(statistics.fmean(seconds), 1) if seconds else ""
        numbers = (*map(without_nan, (setting.mean, setting.std)), len(setting.scores), len(setting.jobs), mean_seconds)
        rows.append([*setting.values, comparison.metric, *numbers])
    return rows


def jobs_table(sweep: Sweep) -> list[list[object]]:
    """One row per job, header first."""
    names = short_names(sweep.swept)
    rows: list[list[object]] = [["job", *names.values(), "state", BEST, "seconds", "error"]]
    for job in sweep.jobs:
        values = (job.values.get(key, "") for key in names)
        rows.append([job.number, *values, job.state, without_nan(job.score), round(job.seconds, 1), job.error])
    return rows


def markdown(sweep: Sweep, comparison: Comparison) -> str:
    """The table of the settings, and the jobs without a result, as Markdown."""
    note = f"{comparison.title}: mean ± sample standard deviation over n runs."
    parts = [f"# {markdown_text(sweep.folder.name)}", markdown_table(*table(comparison), len(comparison.names)), note]
    title, without = missing(sweep)
    if without:
        parts += [f"{title}.", "\n".join(f"- {markdown_text(line)}" for line in without)]
    return "\n\n".join(parts) + "\n"


def write_results(sweep: Sweep, comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``table.csv``, ``table.md``, ``jobs.csv``, ``scores.png``, perhaps ``heatmap.png``; returns their paths."""
    write_file(folder / "table.csv", lambda path: write_csv(path, exact_table(comparison)))
    write_text(folder / "table.md", markdown(sweep, comparison))
    write_file(folder / "jobs.csv", lambda path: write_csv(path, jobs_table(sweep)))
    drawn = {"scores.png": score_figure(comparison), "heatmap.png": heat_figure(comparison)}
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    for name, figure in figures.items():
        write_file(folder / name, figure.savefig)
    return [folder / name for name in ("table.csv", "table.md", "jobs.csv", *figures)]


def print_settings(comparison: Comparison, terminal: Terminal) -> None:
    """Print the table of the settings."""
    left = range(len(comparison.names))
    terminal.table("Mean ± sample standard deviation over n runs", *table(comparison), left=left)


def print_jobs(sweep: Sweep, terminal: Terminal) -> None:
    """Print every job with its state, score and time."""
    names, styles = short_names(sweep.swept), {"done": "green", "failed": "red"}
    rows: list[list[str | Text]] = []
    for job in sweep.jobs:
        score = "" if math.isnan(job.score) else f"{100 * job.score:.1f}"
        values = [short_value(job.values.get(key, "")) for key in names]
        state = Text(job.state, styles.get(job.state, "yellow"))
        rows.append([str(job.number), *values, state, score, f"{job.seconds:.0f}" if job.seconds else ""])
    header = ("job", *names.values(), "state", "mIoU (%)", "seconds")
    terminal.table(f"Jobs of {sweep.folder.name}", header, rows, left=range(1, 2 + len(names)))
    for job in sweep.jobs:
        if job.state == "failed":
            message = f"Job {job.number} failed: {job.error} ({job.folder}/error.log)"
            terminal.print(message, soft_wrap=True, style="red")


class _Key(NamedTuple):
    """A swept key: its place among a setting's values (-1: none), its name, what it takes, whether all are numbers."""

    at: int = -1
    name: str = ""
    values: Sequence[str] = ("",)
    numeric: bool = False

    def of(self, setting: Setting) -> str:
        return "" if self.at < 0 else setting.values[self.at]

    def place(self, setting: Setting) -> float:
        return float(self.of(setting)) if self.numeric else float(self.values.index(self.of(setting)))


def score_figure(comparison: Comparison) -> "Figure":
    """The score against one swept value: mean, sample standard deviation over seeds, and each seed as a dot.

    That value is the number that takes the most values, else the name that does. Of the other swept values the one
    with the most values has a line for each, and every combination of the rest a panel.
    """
    settings, keys = _scored(comparison)
    varied = [key for key in keys if len(key.values) > 1] or keys[:1]
    x = max(varied, key=lambda key: (key.numeric, len(key.values)), default=_Key())
    line = max((key for key in varied if key != x), key=lambda key: len(key.values), default=_Key())
    width = 4.5 if x.numeric else 1.5 + 0.45 * len(x.values) + 0.2 * len(x.values) * len(line.values)
    rest = [key for key in varied if key not in (x, line)]
    figure, panels = _panels(settings, rest, width, legend=line != _Key())
    for axes, members in panels.items():
        for i, value in enumerate(line.values):
            drawn = sorted((setting for setting in members if line.of(setting) == value), key=x.place)
            label = figure_text(f"{line.name} = {value}") if line.name else None
            # Error bars that hide one another tell nothing: side by side, some points apart.
            shift = (i - (len(line.values) - 1) / 2) * (4 if x.numeric else 11)
            _draw(axes, drawn, x, shift, comparison.scale, color=f"C{i}", label=label, linestyle=x.numeric * "-")
        _label(axes, x)
    first, alone = next(iter(panels)), all(len(setting.scores) == 1 for setting in settings)
    if alone and comparison.scale == 100:  # without other seeds nobody knows the noise: no axis that makes it a trend
        low, high = first.get_ylim()
        first.set_ylim(min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5))
    first.set_ylabel(figure_text(comparison.title + ", one run each" * alone))
    if line.name:
        entries = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels)
        handles = {label: handle for panel in entries for handle, label in panel}
        figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right center")
    return figure


def heat_figure(comparison: Comparison) -> "Figure | None":
    """Mean scores over two swept numbers, a panel for each further setting; None unless two take three values."""
    settings, keys = _scored(comparison)
    grid_keys = [key for key in keys if key.numeric and len(key.values) > 2]
    if len(grid_keys) < 2:
        return None
    x, y = grid_keys[:2]
    columns, rows = (sorted(key.values, key=float) for key in (x, y))
    figure, panels = _panels(settings, [key for key in keys if key not in (x, y)], 1.6 + 0.8 * len(columns))
    means = [comparison.scale * setting.mean for setting in settings]
    low, high = min(means), max(means)
    for axes, members in panels.items():
        grid = np.full((len(rows), len(columns)), np.nan)
        for setting in members:
            i, j = rows.index(y.of(setting)), columns.index(x.of(setting))
            grid[i, j] = comparison.scale * setting.mean
            color = "white" if grid[i, j] < low + 0.6 * (high - low) else "black"
            axes.text(j, i, comparison.number(setting.mean), ha="center", va="center", color=color)
        axes.set_facecolor("0.9")
        picture = axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto", origin="lower")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_xlabel(figure_text(x.name))
    next(iter(panels)).set_ylabel(figure_text(y.name))
    figure.colorbar(picture, ax=[*panels], label=figure_text(comparison.title), pad=0.02)
    return figure


def _scored(comparison: Comparison) -> tuple[list[Setting], list[_Key]]:
    """The settings that have a score, and the swept keys over these."""
    settings, keys = [setting for setting in comparison.settings if setting.scores], []
    for k, name in enumerate(comparison.names):
        values = list(dict.fromkeys(setting.values[k] for setting in settings))
        numbers = [number_in(value) for value in values]
        keys.append(_Key(k, name, values, all(n is not None and math.isfinite(n) for n in numbers)))
    return settings, keys


def _panels(
    settings: Sequence[Setting], keys: Sequence[_Key], width: float, legend: bool = False
) -> "tuple[Figure, dict[Axes, list[Setting]]]":
    """A chart for each combination of the keys' values, with its settings; one chart where there is no key."""
    from protoseg.evaluation.pictures import empty_figure

    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(", ".join(f"{key.name} = {key.of(setting)}" for key in keys), []).append(setting)
    across = min(4, len(groups))
    down = -(-len(groups) // across)
    figure = empty_figure(0.5 + width * across + 2.2 * legend, 3.8 * down)
    charts = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for axes, title in zip(charts, groups, strict=False):
        axes.set_title(figure_text(title), fontsize=11)
    for axes in charts[len(groups) :]:
        axes.set_axis_off()
    return figure, dict(zip(charts, groups.values(), strict=False))


def _draw(axes: "Axes", settings: Sequence[Setting], x: _Key, shift: float, scale: int, **style: Any) -> None:
    """One line: means with error bars and the scores behind them, ``shift`` points aside."""
    from matplotlib.transforms import ScaledTranslation

    aside = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    places = [x.place(setting) for setting in settings]
    means = np.array([scale * setting.mean for setting in settings])
    stds = np.nan_to_num([scale * setting.std for setting in settings])
    axes.errorbar(places, means, stds, marker="o", markersize=5, capsize=3, transform=aside, **style)
    several = zip(places, settings, strict=True)
    dots = [(place, scale * score) for place, one in several if len(one.scores) > 1 for score in one.scores]
    axes.plot(*np.reshape(dots, (-1, 2)).T, ".", color=style["color"], alpha=0.5, markersize=6, transform=aside)
    # matplotlib does not count what is shifted when it chooses the limits of the axes.
    axes.update_datalim([*zip(places, means - stds, strict=True), *zip(places, means + stds, strict=True), *dots])
    axes.margins(x=0.08)
    axes.autoscale_view()


def _label(axes: "Axes", x: _Key) -> None:
    from protoseg.evaluation.pictures import tidy

    tidy(axes)
    if not x.name:
        axes.set_xticks([])
        return
    axes.set_xlabel(figure_text(x.name))
    if not x.numeric:
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, x.values)) > 40 else {}
        axes.set_xticks(range(len(x.values)), [figure_text(value) for value in x.values], **turned)
        axes.set_xlim(-0.6, len(x.values) - 0.4)
        return
    numbers = sorted(map(float, x.values))
    if numbers[0] > 0 and numbers[-1] >= 5 * numbers[0]:
        axes.set_xscale("log")
    if len(numbers) <= 10:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.set_xticks([], minor=True)
