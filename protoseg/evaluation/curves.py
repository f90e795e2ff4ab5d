"""The curves of a training, from its CSV log."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_log(run: Path) -> list[dict[str, str]]:
    """A run's CSV log by steps, a row for each: of every stretch that was resumed in its folder, the latest counts."""
    later = sorted(run.glob("logs_*/metrics.csv"), key=lambda file: int(file.parent.name.rpartition("_")[2]))
    files = [run / "logs" / "metrics.csv", *later]
    merged: dict[int, dict[str, str]] = {}
    for path in filter(Path.is_file, files):
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["step"]]
        if rows:
            begun = min(int(row["step"]) for row in rows)
            merged = {step: row for step, row in merged.items() if step <= begun}
        for row in rows:
            merged.setdefault(int(row["step"]), {}).update({key: value for key, value in row.items() if value})
    columns = sorted({key for row in merged.values() for key in row})
    return [{column: merged[step].get(column, "") for column in columns} for step in sorted(merged)]


def curves_figure(run: Path) -> Figure:
    """Losses, validation metrics and quality of pseudo-labels of a run's CSV log over steps."""
    # Only here: reading a log needs neither torch nor matplotlib.
    from protoseg.evaluation.pictures import empty_figure, figure_name, tidy

    rows = read_log(run)
    known = list(rows[0]) if rows else []
    charts = {title: columns for title, belongs in CHARTS.items() if (columns := list(filter(belongs, known)))}
    across = min(3, max(2, len(charts)))
    down = max(1, -(-len(charts) // across))
    figure = empty_figure(5.5 * across, 4 * down)
    for i, (title, columns) in enumerate(charts.items()):
        axes = figure.add_subplot(down, across, 1 + i)
        if len(columns) > _MOST_LINES:
            last = {column: [float(row[column]) for row in rows if row[column]][-1] for column in columns}
            columns = sorted(columns, key=lambda column: last[column])[:_MOST_LINES]
            title += f", the {_MOST_LINES} lowest"
        for number, column in enumerate(columns):
            points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            if points:
                marker = "o" if len(points) < 40 else None
                label = figure_name(column.split("/", 1 + ("by class" in title))[-1])
                style = ("-", "--", ":", "-.")[number // 10]  # ten colours can be told apart, and four styles
                axes.plot(*zip(*points, strict=True), style, c=f"C{number % 10}", label=label, marker=marker, ms=3)
        if title == "training losses":
            axes.set_yscale("log" if axes.lines else "linear")  # terms differ by orders of magnitude
        elif not title.startswith("queue"):
            axes.set_ylim(0, 1)  # shares: the whole range, where chance does not look like a trend
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        tidy(axes)
        if axes.lines:
            many = -(-len(columns) // 20)
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), ncols=many)
    return figure


_MOST_LINES = 40
# Shares in [0, 1] that judge the teacher's labels.
_PSEUDO = ("train/quality", "val/reliable", "val/pseudo_label_accuracy")
CHARTS: dict[str, Callable[[str], bool]] = {
    "training losses": lambda c: bool(re.fullmatch("train/[^/]+", c)) and c not in (*_PSEUDO, "train/images_per_s"),
    "validation": lambda c: bool(re.fullmatch("val/[^/]+", c)) and c not in _PSEUDO,
    "IoU by class": lambda c: c.startswith("val/IoU/"),
    "pseudo-labels": lambda c: c in _PSEUDO,
    "reliable target pixels by class": lambda c: c.startswith("train/reliable/"),
    "queue fill by class": lambda c: bool(re.match("contrast/(reliable_)?queue/", c)),
}
