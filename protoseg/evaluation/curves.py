"""The curves of a training, from its CSV log."""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from protoseg.types import yaml_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LINES = 40
CHARTS: dict[str, str] = yaml_beside(__file__, "curves.yaml")


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


def curves_figure(run: Path) -> "Figure":
    """Losses, validation metrics and quality of pseudo-labels of a run's CSV log over steps."""
    # Only here: reading a log needs neither torch nor matplotlib.
    from protoseg.evaluation.pictures import empty_figure, figure_name, tidy

    rows = read_log(run)
    known = list(rows[0]) if rows else []
    found = {title: [c for c in known if re.fullmatch(pattern, c)] for title, pattern in CHARTS.items()}
    charts = {title: columns for title, columns in found.items() if columns}
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
            marker = "o" if len(points) < 40 else None
            label = figure_name(column.split("/", 1 + ("by class" in title))[-1])
            style = ("-", "--", ":", "-.")[number // 10]  # ten colours can be told apart, and four styles
            axes.plot(*zip(*points, strict=True), style, c=f"C{number % 10}", label=label, marker=marker, ms=3)
        if title == "training losses":
            axes.set_yscale("log")  # terms differ by orders of magnitude
        elif not title.startswith("queue"):
            axes.set_ylim(0, 1)  # shares: the whole range, where chance does not look like a trend
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        tidy(axes)
        many = -(-len(columns) // 20)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), ncols=many)
    return figure
