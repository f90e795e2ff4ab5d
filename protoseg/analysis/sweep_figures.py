"""Pictures of a sweep: the score against a swept value, and over two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from protoseg.analysis.sweep import Comparison, Setting, is_number
from protoseg.evaluation.pictures import empty_figure
from protoseg.text import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_ACROSS = 4
Panel = tuple["Axes", list[Setting]]


def score_figure(comparison: Comparison) -> Figure:
    """The score against one swept value: mean, sample standard deviation over seeds, and each seed as a dot.

    That value is the number that takes the most values, else the name that does. Of the other swept values the one
    with the most values has a line for each, and every combination of the rest a panel.
    """
    settings = _scored(comparison)
    x, line, rest = _roles(comparison, settings)
    numeric, lines = _numeric(settings, x), _values(settings, line)
    width = 4.5 if numeric else 1.5 + 0.45 * len(_values(settings, x)) + 0.2 * len(_values(settings, x)) * len(lines)
    figure, panels = _panels(comparison, settings, rest, width, legend=line is not None)
    for axes, members in panels:
        for i, value in enumerate(lines):
            drawn = [setting for setting in members if _value(setting, line) == value]
            label = figure_text(f"{comparison.names[line]} = {value}") if line is not None else None
            # Error bars that hide one another tell nothing: side by side, some points apart.
            shift = (i - (len(lines) - 1) / 2) * (4 if numeric else 11)
            places = [_place(settings, x, setting) for setting in drawn]
            _draw(
                axes, comparison, drawn, places, shift, {"color": f"C{i}", "label": label, "linestyle": numeric * "-"}
            )
        _label(axes, comparison, settings, x)
    panels[0][0].set_ylabel(figure_text(comparison.title))
    if line is not None:
        entries = (zip(*axes.get_legend_handles_labels(), strict=True) for axes, _ in panels)
        handles = {label: handle for panel in entries for handle, label in panel}
        figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right center")
    return figure


def heat_figure(comparison: Comparison) -> Figure | None:
    """Mean scores over two swept numbers, a panel for each further setting; None unless two take three values."""
    settings = _scored(comparison)
    grid_keys = [k for k in range(len(comparison.names)) if _numeric(settings, k) and len(_values(settings, k)) > 2]
    if len(grid_keys) < 2:
        return None
    x, y = grid_keys[:2]
    rest = [k for k in range(len(comparison.names)) if k not in (x, y)]
    columns, rows = (sorted(_values(settings, k), key=float) for k in (x, y))
    figure, panels = _panels(comparison, settings, rest, 1.6 + 0.8 * len(columns))
    means = [_scaled(comparison, setting.mean) for setting in settings]
    low, high = min(means), max(means)
    for axes, members in panels:
        grid = np.full((len(rows), len(columns)), np.nan)
        for setting in members:
            i, j = rows.index(setting.values[y]), columns.index(setting.values[x])
            grid[i, j] = _scaled(comparison, setting.mean)
            color = "white" if grid[i, j] < low + 0.6 * (high - low) else "black"
            axes.text(j, i, comparison.number(setting.mean), ha="center", va="center", color=color)
        axes.set_facecolor("0.9")
        picture = axes.imshow(grid, cmap="viridis", vmin=low, vmax=high, aspect="auto", origin="lower")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.set_xlabel(figure_text(comparison.names[x]))
    panels[0][0].set_ylabel(figure_text(comparison.names[y]))
    figure.colorbar(picture, ax=[axes for axes, _ in panels], label=figure_text(comparison.title), pad=0.02)
    return figure


def _roles(comparison: Comparison, settings: Sequence[Setting]) -> tuple[int | None, int | None, list[int]]:
    """Places in ``names`` of the horizontal axis, of the lines, and of the panels."""
    counts = {k: len(_values(settings, k)) for k in range(len(comparison.names))}
    varied = [k for k in counts if counts[k] > 1] or list(counts)[:1]
    if not varied:
        return None, None, []
    x = max(varied, key=lambda k: (_numeric(settings, k), counts[k]))
    others = [k for k in varied if k != x]
    line = max(others, key=lambda k: counts[k], default=None)
    return x, line, [k for k in others if k != line]


def _panels(
    comparison: Comparison, settings: Sequence[Setting], keys: Sequence[int], width: float, legend: bool = False
) -> tuple[Figure, list[Panel]]:
    """A chart for each combination of the keys' values, with its settings; one chart where there is no key."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        title = ", ".join(f"{comparison.names[k]} = {setting.values[k]}" for k in keys)
        groups.setdefault(title, []).append(setting)
    across = max(1, min(PANELS_ACROSS, len(groups)))
    down = max(1, -(-len(groups) // across))
    figure = empty_figure(0.5 + width * across + 2.2 * legend, 3.8 * down)
    charts = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
    panels = [(axes, groups[title]) for axes, title in zip(charts, groups, strict=False)]
    for (axes, _), title in zip(panels, groups, strict=True):
        axes.set_title(figure_text(title), fontsize=11)
    for axes in list(charts)[len(groups) :]:
        axes.set_axis_off()
    return figure, panels


def _draw(
    axes: Axes,
    comparison: Comparison,
    settings: Sequence[Setting],
    places: Sequence[float],
    shift: float,
    style: dict[str, Any],
) -> None:
    from matplotlib.transforms import ScaledTranslation

    aside = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    order = sorted(range(len(places)), key=lambda i: places[i])
    means = [_scaled(comparison, settings[i].mean) for i in order]
    stds = np.nan_to_num([_scaled(comparison, settings[i].std) for i in order])
    axes.errorbar(
        [places[i] for i in order], means, stds, marker="o", markersize=5, capsize=3, transform=aside, **style
    )
    # matplotlib does not count what is shifted when it chooses the limits of the axes.
    axes.update_datalim([(places[i], y) for k, i in enumerate(order) for y in (means[k] - stds[k], means[k] + stds[k])])
    for i in order:
        scores = [_scaled(comparison, score) for score in settings[i].scores]
        if len(scores) > 1:
            at = [places[i]] * len(scores)
            axes.plot(at, scores, ".", color=style["color"], alpha=0.5, markersize=6, transform=aside)
            axes.update_datalim(list(zip(at, scores, strict=True)))
    axes.margins(x=0.08)
    axes.autoscale_view()


def _label(axes: Axes, comparison: Comparison, settings: Sequence[Setting], x: int | None) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if x is None:
        axes.set_xticks([])
        return
    axes.set_xlabel(figure_text(comparison.names[x]))
    values = _values(settings, x)
    if not _numeric(settings, x):
        long = sum(map(len, values)) > 40
        names = [figure_text(value) for value in values]
        axes.set_xticks(range(len(values)), names, rotation=30 if long else 0, ha="right" if long else "center")
        axes.set_xlim(-0.6, len(values) - 0.4)
        return
    numbers = sorted(map(float, values))
    if numbers[0] > 0 and numbers[-1] >= 5 * numbers[0]:
        axes.set_xscale("log")
    if len(numbers) <= 10:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.set_xticks([], minor=True)


def _scored(comparison: Comparison) -> list[Setting]:
    return [setting for setting in comparison.settings if setting.scores]


def _scaled(comparison: Comparison, score: float) -> float:
    return 100 * score if comparison.percent else score


def _value(setting: Setting, key: int | None) -> str:
    return "" if key is None else setting.values[key]


def _values(settings: Sequence[Setting], key: int | None) -> list[str]:
    return list(dict.fromkeys(_value(setting, key) for setting in settings))


def _numeric(settings: Sequence[Setting], key: int | None) -> bool:
    return key is not None and all(is_number(setting.values[key]) for setting in settings)


def _place(settings: Sequence[Setting], key: int | None, setting: Setting) -> float:
    if _numeric(settings, key):
        return float(_value(setting, key))
    return float(_values(settings, key).index(_value(setting, key)))
