"""Pictures of a sweep: the score against a swept value, and over two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from protoseg.analysis.sweep import Comparison, Setting
from protoseg.evaluation.pictures import empty_figure, tidy
from protoseg.text import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def score_figure(comparison: Comparison) -> Figure:
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
    for axes, members in panels:
        for i, value in enumerate(line.values):
            drawn = sorted((setting for setting in members if line.of(setting) == value), key=x.place)
            label = figure_text(f"{line.name} = {value}") if line.name else None
            # Error bars that hide one another tell nothing: side by side, some points apart.
            shift = (i - (len(line.values) - 1) / 2) * (4 if x.numeric else 11)
            style = {"color": f"C{i}", "label": label, "linestyle": x.numeric * "-"}
            _draw(axes, comparison, drawn, x, shift, style)
        tidy(axes)
        _label(axes, x)
    panels[0][0].set_ylabel(figure_text(comparison.title))
    if line.name:
        entries = (zip(*axes.get_legend_handles_labels(), strict=True) for axes, _ in panels)
        handles = {label: handle for panel in entries for handle, label in panel}
        figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right center")
    return figure


def heat_figure(comparison: Comparison) -> Figure | None:
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
    for axes, members in panels:
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
    panels[0][0].set_ylabel(figure_text(y.name))
    figure.colorbar(picture, ax=[axes for axes, _ in panels], label=figure_text(comparison.title), pad=0.02)
    return figure


def _scored(comparison: Comparison) -> tuple[list[Setting], list[_Key]]:
    """The settings that have a score, and the swept keys over these."""
    settings, keys = [setting for setting in comparison.settings if setting.scores], []
    for k, name in enumerate(comparison.names):
        values = list(dict.fromkeys(setting.values[k] for setting in settings))
        keys.append(_Key(k, name, values, all(map(_is_number, values))))
    return settings, keys


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _panels(
    settings: Sequence[Setting], keys: Sequence[_Key], width: float, legend: bool = False
) -> tuple[Figure, list[tuple[Axes, list[Setting]]]]:
    """A chart for each combination of the keys' values, with its settings; one chart where there is no key."""
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
    return figure, list(zip(charts, groups.values(), strict=False))


def _draw(
    axes: Axes, comparison: Comparison, settings: Sequence[Setting], x: _Key, shift: float, style: dict[str, Any]
) -> None:
    """One line: means with error bars and the scores behind them, ``shift`` points aside."""
    from matplotlib.transforms import ScaledTranslation

    aside = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    places = [x.place(setting) for setting in settings]
    means = np.array([comparison.scale * setting.mean for setting in settings])
    stds = np.nan_to_num([comparison.scale * setting.std for setting in settings])
    axes.errorbar(places, means, stds, marker="o", markersize=5, capsize=3, transform=aside, **style)
    # matplotlib does not count what is shifted when it chooses the limits of the axes.
    axes.update_datalim([*zip(places, means - stds, strict=True), *zip(places, means + stds, strict=True)])
    for place, setting in zip(places, settings, strict=True):
        scores = [comparison.scale * score for score in setting.scores]
        if len(scores) > 1:
            at = [place] * len(scores)
            axes.plot(at, scores, ".", color=style["color"], alpha=0.5, markersize=6, transform=aside)
            axes.update_datalim(list(zip(at, scores, strict=True)))
    axes.margins(x=0.08)
    axes.autoscale_view()


def _label(axes: Axes, x: _Key) -> None:
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
