"""What a benchmark shows: a table, a JSON file, a plot of time and memory against one size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from benchmarks.paired import Timing


class Measured(NamedTuple):
    """One setting: its sizes, and by alternative the timing and the peak of memory in megabytes (None: unknown)."""

    setting: Any
    timings: Mapping[str, Timing]
    megabytes: Mapping[str, float | None]


def table(measured: Measured, title: str) -> Table:
    """One row per alternative; images per second where the setting has a number of images."""
    first, images = next(iter(measured.timings)), getattr(measured.setting, "images", None)
    out = Table(title=title)
    columns = ["", "median ms", f"over {first}", "over the one above", "peak MB", *(["images/s"] if images else [])]
    for column in columns:
        out.add_column(column, justify="right", no_wrap=column in ("", "images/s"))
    for name, timing in measured.timings.items():
        megabytes = measured.megabytes[name]
        cells = [f"{timing.milliseconds:.1f}", f"{timing.over_first:.2f}", f"{timing.over_previous:.2f}"]
        cells.append("?" if megabytes is None else f"{megabytes:.0f}")
        if images:
            cells.append(f"{1000 * images / timing.milliseconds:.1f}")
        out.add_row(name, *cells)
    return out


def write_json(path: Path, runs: list[Measured], machine: Mapping[str, object]) -> None:
    """All that was measured, one entry per setting."""
    entries = [
        {"setting": run.setting._asdict(), "result": dict(run.timings), "megabytes": dict(run.megabytes)}
        for run in runs
    ]
    path.write_text(json.dumps({"machine": machine, "runs": entries}, indent=2))


def exponent(sizes: list[float], values: list[float]) -> float:
    """b of the fit value = a * size^b."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def plot(path: Path, runs: list[Measured], size: str, title: str) -> None:
    """Time and memory of each alternative against ``size``, both axes logarithmic, with the exponents of the fits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    sizes = [float(getattr(run.setting, size)) for run in runs]
    for name in runs[0].timings:
        times = [run.timings[name].milliseconds for run in runs]
        time_axes.loglog(sizes, times, "o-", label=f"{name}: {size}^{exponent(sizes, times):.2f}")
        peaks = [run.megabytes[name] or np.nan for run in runs]
        if np.isfinite(peaks).all():
            memory_axes.loglog(sizes, peaks, "o-", label=f"{name}: {size}^{exponent(sizes, peaks):.2f}")
    for axes, label in ((time_axes, "median ms"), (memory_axes, "peak MB")):
        axes.set(xlabel=size, ylabel=label, xticks=sizes)
        axes.set_xticks(sizes, [f"{value:g}" for value in sizes])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
