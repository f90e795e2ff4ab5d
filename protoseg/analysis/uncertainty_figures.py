"""Pictures of uncertainty: maps of one image, and the curves over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from protoseg.analysis.stream import Scene
from protoseg.analysis.uncertainty import Array, Calibration, ErrorDetection, pixel_uncertainty
from protoseg.evaluation.pictures import Picture, as_picture, empty_figure, error_map, heat, overlay, tidy, tile_row
from protoseg.types import IGNORE_INDEX, LabelSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#12305c", "#3b8fb6", "#e08214", "#b2182b", "#5a5a5a", "#7b3294")


def uncertainty_panel(scene: Scene, label_space: LabelSpace) -> Picture:
    """Photo, prediction, errors (where there is a truth) and the maps of each measure, bright where uncertain.

    The maps show 1 - confidence, 1 - margin / its 95th percentile, and the distance over its 99th percentile.
    """
    found = pixel_uncertainty(scene)
    prediction, label, image = found.prediction.cpu(), scene.label.cpu(), scene.image.cpu()
    counted = label != IGNORE_INDEX
    tiles = {"image": as_picture(image), "prediction": overlay(image, prediction, label_space)}
    if counted.any():
        wrong = 100 * (prediction != label)[counted].double().mean().item()
        tiles[f"errors · {wrong:.1f} %"] = error_map(image, label, prediction, label_space)
    if found.margin is not None and found.distance is not None:
        tiles["small margin"] = heat((1 - found.margin / _quantile(found.margin, 0.95)).clamp(0, 1))
        tiles["large distance"] = heat((found.distance / _quantile(found.distance, 0.99)).clamp(0, 1))
    tiles["low softmax confidence"] = heat(1 - found.confidence)
    return tile_row(tiles, label_space, [prediction, label])


def _quantile(values: Tensor, share: float) -> float:
    # numpy: torch.quantile refuses large inputs
    return max(float(np.quantile(values.cpu().numpy(), share)), 1e-6)


def uncertainty_figure(found: Mapping[str, ErrorDetection], title: str = "") -> Figure:
    """Risk-coverage curves, reliability diagrams, and right pixels by rank, of measures by their names."""
    figure = empty_figure(16, 5.2)
    coverage, reliability, accuracy = figure.subplots(1, 3)
    for color, (name, entry) in zip(COLORS, found.items(), strict=False):
        kept, risk = entry.risk_coverage()
        label = f"{name}: AUROC {entry.auroc:.3f}, AURC {100 * entry.aurc:.2f} %"
        coverage.plot(kept, 100 * risk, color=color, linewidth=1.6, label=label)
        accuracy.plot((np.arange(50) + 0.5) / 50, _accuracy_by_rank(entry), color=color, linewidth=1.6, label=name)
        if entry.calibration is not None:
            _reliability(reliability, entry.calibration, name, color)
    coverage.set(xlabel="share of pixels kept, surest first", ylabel="share of wrong pixels among them (%)")
    coverage.set_title("Risk and coverage")
    reliability.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    reliability.set(xlabel="confidence", ylabel="share of right pixels", xlim=(0, 1), ylim=(0, 1))
    reliability.set_title("Reliability (dot size: pixels)")
    accuracy.set(xlabel="rank of the pixel, least sure first", ylabel="share of right pixels", ylim=(0, 1.02))
    accuracy.set_title("Right pixels by rank")
    for axes in (coverage, reliability, accuracy):
        tidy(axes)
        axes.legend(fontsize=8, loc="best")
    figure.suptitle(title, fontsize=12)
    return figure


def _reliability(axes: Axes, calibration: Calibration, name: str, color: str) -> None:
    held = calibration.pixels > 0
    sizes = 8 + 120 * np.sqrt(calibration.pixels[held] / calibration.pixels.sum())
    points = calibration.confidence[held], calibration.accuracy[held]
    axes.plot(*points, color=color, linewidth=1.2, label=f"{name}: ECE {100 * calibration.ece:.1f} %")
    axes.scatter(*points, s=sizes, color=color)


def _accuracy_by_rank(entry: ErrorDetection) -> Array:
    """Share of right pixels in 50 groups of equal size; a bin that lies across groups is shared out between them."""
    edges = np.linspace(0, entry.pixels, 51)
    passed = np.concatenate([[0], np.cumsum(entry.right + entry.wrong)])
    right = np.diff(np.interp(edges, passed, np.concatenate([[0], np.cumsum(entry.right)])))
    return right / np.diff(edges)
