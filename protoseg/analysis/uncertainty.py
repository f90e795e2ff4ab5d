"""How well a model knows where it is wrong: by prototype margin, distance to the prototypes, softmax confidence.

Any number of pixels fits: all is read from histograms of ``BINS`` cells; those of one cell count as equally certain.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from protoseg.analysis.stream import Loader, Scene, collect, scenes
from protoseg.evaluation.pictures import Picture, as_picture, empty_figure, error_map, heat, overlay, tidy, tile_row
from protoseg.types import IGNORE_INDEX, LabelSpace

BINS = 2**15
CALIBRATION_BINS = 15
COLORS = ("#12305c", "#3b8fb6", "#e08214", "#b2182b", "#5a5a5a", "#7b3294")
PROBABILITIES = ("confidence", "class-aware")
RANGES = {"margin": (0.0, 2.0), "distance": (-2.0, 0.0)} | dict.fromkeys(PROBABILITIES, (-8.0, 40.0))
"""Lowest and highest certainty of each measure: the margin, minus the distance, and the log-odds of the confidence,
in which certain pixels are told apart that all round to probability 1."""

Array = npt.NDArray[np.float64]


class PixelUncertainty(NamedTuple):
    """Prediction and certainty of every pixel of an image, each ``H W``; the last two are None without prototypes."""

    prediction: Tensor  # the likeliest class, int64
    log_odds: Tensor  # log(p / (1 - p)) of its softmax probability p
    margin: Tensor | None  # cosine of the nearest class minus that of the runner-up, in [0, 2]
    distance: Tensor | None  # 1 minus the cosine to the nearest prototype of all, in [0, 2]

    @property
    def confidence(self) -> Tensor:
        """The softmax probability of the predicted class."""
        return self.log_odds.sigmoid()

    def certainties(self) -> dict[str, Tensor]:
        """By name of the measure, in the units of ``RANGES``: high is certain."""
        found = {"confidence": self.log_odds}
        if self.margin is not None and self.distance is not None:
            found |= {"margin": self.margin, "distance": -self.distance}
        return found


@torch.no_grad()
def pixel_uncertainty(scene: Scene) -> PixelUncertainty:
    """See :class:`PixelUncertainty`. Logits and class cosines are brought to the pixels first, as in evaluation."""
    prediction, best, rest = _best_and_rest(scene.at_pixels(scene.output.logits[0].float()))
    log_odds = best - rest.logsumexp(0)
    if scene.output.similarities is None:
        return PixelUncertainty(prediction, log_odds, None, None)
    cells = scene.cosines.scores.view(*scene.grid, -1).permute(2, 0, 1).float()
    _, nearest, others = _best_and_rest(scene.at_pixels(cells))
    return PixelUncertainty(prediction, log_odds, nearest - others.amax(0), 1 - nearest)


def _best_and_rest(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index and value of the highest of ``c H W``, and the rest: the same with -inf in its place."""
    best, index = values.max(0)
    return index, best, values.scatter(0, index.unsqueeze(0), -torch.inf)


class Calibration(NamedTuple):
    """Pixels by confidence, in ``CALIBRATION_BINS`` equal steps from 0 to 1 (Guo et al., arXiv 1706.04599)."""

    pixels: Array  # of each bin how many
    confidence: Array  # their mean; NaN in an empty bin
    accuracy: Array  # the share of right ones; NaN in an empty bin

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over the pixels of their bin's |accuracy - confidence|."""
        return float(np.nansum(np.abs(self.accuracy - self.confidence) * self.pixels) / self.pixels.sum())


class ErrorDetection(NamedTuple):
    """How well a measure of certainty tells right pixels from wrong ones."""

    measure: str  # name out of ``RANGES``
    right: Array  # pixels in each bin of certainty, least certain first
    wrong: Array  # as well
    calibration: Calibration | None = None  # where the measure is a probability

    @property
    def pixels(self) -> int:
        return int(self.right.sum() + self.wrong.sum())

    @property
    def error_rate(self) -> float:
        return float(self.wrong.sum() / self.pixels)

    @property
    def auroc(self) -> float:
        """Probability that a right pixel is surer than a wrong one, ties counting half; NaN where all are one kind."""
        with np.errstate(invalid="ignore"):
            pairs = (self.right * (np.cumsum(self.wrong) - self.wrong / 2)).sum()
            return float(pairs / (self.right.sum() * self.wrong.sum()))

    def risk_coverage(self) -> tuple[Array, Array]:
        """Share of pixels kept, and the share of wrong ones among them, as less and less certain ones are let in."""
        pixels, wrong, before = self._from_surest()
        held, kept = pixels > 0, before + pixels
        return kept[held] / self.pixels, np.cumsum(wrong)[held] / kept[held]

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve (Geifman & El-Yaniv, arXiv 1705.08500), wrong pixels even within a bin."""
        pixels, wrong, before = self._from_surest()
        errors = np.cumsum(wrong) - wrong
        rate = np.divide(wrong, pixels, out=np.zeros_like(wrong), where=pixels > 0)
        growth = np.log((before + pixels) / np.maximum(before, 1), where=before > 0, out=np.zeros_like(before))
        return float((rate * pixels + (errors - rate * before) * growth).sum() / self.pixels)

    @property
    def aurc_optimal(self) -> float:
        """The area if every right pixel were surer than every wrong one: what the error rate alone costs."""
        kept = 1 - self.error_rate
        return self.error_rate + (kept * float(np.log(kept)) if kept > 0 else 0.0)

    def values(self) -> Array:
        """The middle of each bin, in the units of the measure: cosine, distance (falling), or probability."""
        low, high = RANGES[self.measure]
        middle = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
        return {"margin": middle, "distance": -middle}.get(self.measure, 1 / (1 + np.exp(-middle)))

    def summary(self) -> dict[str, Any]:
        """The numbers as plain values; see the properties of the same names. ``ece`` is None where there is none."""
        names = ("pixels", "error_rate", "auroc", "aurc", "aurc_optimal")
        ece = self.calibration.ece if self.calibration else None
        return {name: getattr(self, name) for name in names} | {"ece": ece}

    def _from_surest(self) -> tuple[Array, Array, Array]:
        """Pixels and wrong pixels of each bin, surest first, and the pixels before it."""
        pixels, wrong = (self.right + self.wrong)[::-1], self.wrong[::-1].copy()
        return pixels, wrong, np.cumsum(pixels) - pixels


class UncertaintyCollector:
    """Histograms of the certainty of right and of wrong pixels over a stream; unlabelled pixels do not count.

    ``known`` is the ``discriminant`` of a model that has statistics: by them there is a class-aware confidence, too.
    """

    def __init__(self, known: nn.Module | None = None) -> None:
        self.known = known
        self.thresholds: Tensor | None = cast(Any, known).known.sets if known is not None else None
        # By class: pixels, those whose set holds it, classes in their sets, and sets of one class.
        self.sets = np.zeros((4, 0 if self.thresholds is None else len(self.thresholds)))
        self.histograms: dict[str, Array] = {}
        self.calibrations: dict[str, Array] = {}  # pixels, sum of their confidences, right pixels

    def update(self, scene: Scene) -> None:
        found = pixel_uncertainty(scene)
        counted = scene.label != IGNORE_INDEX
        right, certainties = (found.prediction == scene.label)[counted], found.certainties()
        if self.known is not None:
            certainties["class-aware"] = cast(Any, self.known).log_odds(found.log_odds, found.prediction)
        for name, certainty in certainties.items():
            (low, high), values = RANGES[name], certainty[counted]
            cell = ((values - low) * (BINS / (high - low))).long().clamp_(0, BINS - 1)
            counts = torch.bincount(cell + BINS * right, minlength=2 * BINS).view(2, BINS)
            self.histograms[name] = self.histograms.get(name, 0.0) + counts.cpu().double().numpy()
            if name in PROBABILITIES:
                confidence = values.sigmoid().cpu().double()
                cell = (confidence * CALIBRATION_BINS).long().clamp_(max=CALIBRATION_BINS - 1)
                weights = (torch.ones_like(confidence), confidence, right.cpu().double())
                sums = np.stack([torch.bincount(cell, weight, CALIBRATION_BINS).numpy() for weight in weights])
                self.calibrations[name] = self.calibrations.get(name, 0.0) + sums

        if self.thresholds is not None:
            truth, scores = scene.label[counted], scene.at_pixels(scene.output.logits[0].float())[:, counted]
            sets = scores.softmax(0) >= self.thresholds.to(scores).unsqueeze(1)
            held, size = sets.gather(0, truth[None])[0], sets.sum(0)
            for row, each in enumerate((truth >= 0, held, size, size == 1)):
                self.sets[row] += torch.bincount(truth, each.double(), len(self.thresholds)).cpu().numpy()

    def label_sets(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Of each class's pixels, and of all, the share whose label set holds their class, the sets' mean size, and the
        share of sets of one class; NaN of no pixels. Empty where there are no thresholds.
        """
        if self.thresholds is None:
            return []
        pixels, *sums = np.column_stack([self.sets, self.sets.sum(1)])
        with np.errstate(invalid="ignore"):
            covered, size, single = (part / pixels for part in sums)
        rows = zip([*classes, "all"], covered.tolist(), size.tolist(), single.tolist(), strict=True)
        return [dict(zip(("class", "covered", "size", "single"), row, strict=True)) for row in rows]

    def compute(self) -> dict[str, ErrorDetection]:
        """By measure; probabilities come with their calibration."""
        calibrations = {}
        for name, (pixels, confidence, right) in self.calibrations.items():
            with np.errstate(invalid="ignore"):
                calibrations[name] = Calibration(pixels.copy(), confidence / pixels, right / pixels)
        return {
            name: ErrorDetection(name, right, wrong, calibrations.get(name))
            for name, (wrong, right) in self.histograms.items()
        }


def error_detection(model: nn.Module, loader: Loader) -> dict[str, ErrorDetection]:
    """By measure (``margin`` and ``distance`` of prototypes, ``confidence``, ``class-aware``), over a labelled set."""
    collector = UncertaintyCollector(getattr(model, "discriminant", None))
    collect(scenes(model, loader, "uncertainty"), collector)
    return collector.compute()


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
        tiles["small margin"] = heat((1 - _per_quantile(found.margin, 0.95)).clamp(0, 1))
        tiles["large distance"] = heat(_per_quantile(found.distance, 0.99).clamp(0, 1))
    tiles["low softmax confidence"] = heat(1 - found.confidence)
    return tile_row(tiles, label_space, [prediction, label])


def _per_quantile(values: Tensor, share: float) -> Tensor:
    # numpy: torch.quantile refuses large inputs
    return values / max(float(np.quantile(values.cpu().numpy(), share)), 1e-6)


def uncertainty_figure(found: Mapping[str, ErrorDetection], title: str = "") -> Figure:
    """Risk-coverage curves, reliability diagrams, and right pixels by rank, of measures by their names."""
    figure = empty_figure(16, 5.2)
    coverage, reliability, accuracy = figure.subplots(1, 3)
    for color, (name, entry) in zip(COLORS, found.items(), strict=False):
        kept, risk = entry.risk_coverage()
        label = f"{name}: AUROC {entry.auroc:.3f}, AURC {100 * entry.aurc:.2f} %"
        coverage.plot(kept, 100 * risk, color=color, linewidth=1.6, label=label)
        # In 50 groups of equal size; a bin that lies across groups is shared out between them.
        edges, passed = np.linspace(0, entry.pixels, 51), np.cumsum([0, *(entry.right + entry.wrong)])
        shares = np.diff(np.interp(edges, passed, np.cumsum([0, *entry.right]))) / np.diff(edges)
        accuracy.plot((np.arange(50) + 0.5) / 50, shares, color=color, linewidth=1.6, label=name)
        if entry.calibration is not None:
            pixels, *points = (values[entry.calibration.pixels > 0] for values in entry.calibration)
            ece = f"{name}: ECE {100 * entry.calibration.ece:.1f} %"
            reliability.plot(*points, color=color, linewidth=1.2, label=ece)
            reliability.scatter(*points, s=8 + 120 * np.sqrt(pixels / pixels.sum()), color=color)
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
