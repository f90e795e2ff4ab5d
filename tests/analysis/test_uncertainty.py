"""Histograms of certainty against exact numbers over all pixels."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from protoseg.analysis import uncertainty
from protoseg.analysis.stream import look, scenes
from protoseg.analysis.uncertainty import (
    ErrorDetection,
    UncertaintyCollector,
    error_detection,
    pixel_uncertainty,
    uncertainty_figure,
    uncertainty_panel,
)
from tests.analysis.toy import SPACE, Images, Toy, loader
from tests.functional.dense import dense


def exact_aurc(certainty: Tensor, right: Tensor) -> float:
    """Mean over the pixels of the error rate among those at least as sure, surest first."""
    wrong = (~right[certainty.argsort(descending=True, stable=True)]).double()
    return float((wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)).mean())


def all_pixels(model: Toy) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Certainty of each measure, confidence, and whether right, of all labelled pixels."""
    certainties: dict[str, list[Tensor]] = {}
    confidence, right = [], []
    for scene in scenes(model, loader()):
        found, counted = pixel_uncertainty(scene), scene.label != -1
        for name, values in found.certainties().items():
            certainties.setdefault(name, []).append(values[counted])
        confidence.append(found.confidence[counted])
        right.append((found.prediction == scene.label)[counted])
    return {name: torch.cat(values) for name, values in certainties.items()}, torch.cat(confidence), torch.cat(right)


def test_measures_of_one_image() -> None:
    model = Toy().eval()
    scene = look(model, Images().items[1][0])
    found = pixel_uncertainty(scene)
    logits = scene.at_pixels(scene.output.logits[0])
    assert torch.equal(found.prediction, logits.argmax(0))
    assert torch.allclose(found.confidence, logits.softmax(0).amax(0), atol=1e-6)
    of_all = dense(scene.cosines).view(*scene.grid, 3, -1).amax(3).permute(2, 0, 1)
    first, second = scene.at_pixels(of_all).topk(2, dim=0).values
    assert found.margin is not None
    assert found.distance is not None
    assert torch.allclose(found.margin, first - second, atol=1e-6)
    assert torch.allclose(found.distance, 1 - first, atol=1e-6)
    certainties = found.certainties()
    assert torch.equal(certainties["distance"], -found.distance)
    assert torch.equal(certainties["margin"], found.margin)
    assert torch.equal(certainties["confidence"].argsort(), found.log_odds.argsort())


def test_log_odds_tell_certain_pixels_apart() -> None:
    scene = look(Toy().eval(), Images().items[0][0])
    logits = torch.zeros_like(scene.output.logits)
    logits[:, 0], logits[:, 0, 0, 0] = 30.0, 31.0
    found = pixel_uncertainty(scene._replace(output=scene.output._replace(logits=logits)))
    assert found.confidence.unique().tolist() == [1.0]
    assert found.log_odds[0, 0] > found.log_odds[-1, -1]


def test_histograms_lose_next_to_nothing() -> None:
    model = Toy()
    certainties, confidence, right = all_pixels(model)
    found = error_detection(model, loader())
    assert set(found) == set(certainties) == {"margin", "distance", "confidence"}
    for name, entry in found.items():
        assert entry.pixels == len(right)
        assert entry.error_rate == pytest.approx(1 - right.double().mean().item())
        auroc = float(binary_auroc((certainties[name].argsort().argsort().double() + 1) / len(right), right.long()))
        assert abs(entry.auroc - auroc) < 1e-3
        assert abs(entry.aurc - exact_aurc(certainties[name], right)) < 3e-4
    calibration = found["confidence"].calibration
    assert calibration is not None
    want = float(binary_calibration_error(confidence, right.long(), n_bins=uncertainty.CALIBRATION_BINS, norm="l1"))
    assert calibration.ece == pytest.approx(want, abs=1e-5)
    assert found["margin"].calibration is None


def detection(right: list[float], wrong: list[float]) -> ErrorDetection:
    return ErrorDetection("margin", np.array(right, dtype=float), np.array(wrong, dtype=float))


def test_a_measure_that_knows_everything_and_one_that_knows_nothing() -> None:
    perfect = detection([0, 300], [100, 0])
    assert (perfect.auroc, perfect.error_rate) == (1.0, 0.25)
    assert perfect.aurc == pytest.approx(perfect.aurc_optimal)
    assert perfect.aurc_optimal == pytest.approx(0.25 + 0.75 * math.log(0.75))
    opposite = detection([300, 0], [0, 100])
    assert opposite.auroc == 0.0
    blind = detection([300], [100])
    assert blind.auroc == 0.5
    assert blind.aurc == pytest.approx(0.25)
    assert perfect.aurc < blind.aurc < opposite.aurc
    flawless = detection([5], [0])
    assert math.isnan(flawless.auroc)
    assert flawless.aurc == flawless.aurc_optimal == 0


def test_risk_grows_from_the_surest_pixels_to_the_error_rate() -> None:
    coverage, risk = detection([10, 0, 30], [20, 0, 0]).risk_coverage()
    assert coverage.tolist() == [0.5, 1.0]
    assert risk.tolist() == pytest.approx([0.0, 1 / 3])


def test_a_network_without_prototypes_has_its_confidence() -> None:
    found = error_detection(Toy(prototypes=False), loader())
    assert set(found) == {"confidence"}
    assert found["confidence"].calibration is not None


def test_a_bias_of_each_class_is_a_measure_of_its_own() -> None:
    class Biased(torch.nn.Module):
        known = SimpleNamespace(sets=None)

        def log_odds(self, log_odds: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
            return log_odds - 4.0 * (predicted == 1)

    model = Toy()
    model.discriminant = Biased()
    found = error_detection(model, loader())
    assert found["class-aware"].auroc != found["confidence"].auroc
    assert found["class-aware"].calibration is not None
    assert found["confidence"].auroc == error_detection(Toy(), loader())["confidence"].auroc


def test_label_sets_are_counted_pixel_by_pixel() -> None:
    class Known(torch.nn.Module):
        known = SimpleNamespace(sets=torch.tensor([0.3, 0.35, 0.2]))

        def log_odds(self, log_odds: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
            return log_odds

    model, collector = Toy(), UncertaintyCollector(Known())
    pixels, covered, size, single = (np.zeros(3) for _ in range(4))
    for scene in scenes(model, loader()):
        collector.update(scene)
        chance = scene.at_pixels(scene.output.logits[0]).softmax(0).permute(1, 2, 0)
        for p, truth in zip(chance[scene.label >= 0], scene.label[scene.label >= 0].tolist(), strict=True):
            found = [c for c in range(3) if p[c] >= Known.known.sets[c]]
            for sums, value in ((pixels, 1), (covered, truth in found), (size, len(found)), (single, len(found) == 1)):
                sums[truth] += value
    *rows, every = collector.label_sets(SPACE.classes)
    assert [row["class"] for row in rows] == list(SPACE.classes)
    for name, sums in (("covered", covered), ("size", size), ("single", single)):
        assert [row[name] for row in rows] == pytest.approx(list(sums / pixels))
        assert every[name] == pytest.approx(sums.sum() / pixels.sum())
    assert 0.1 < every["covered"] < 0.9
    assert UncertaintyCollector().label_sets(SPACE.classes) == []


def test_unlabelled_pixels_do_not_count() -> None:
    collector = UncertaintyCollector()
    for scene in scenes(Toy(), loader(void=True)):
        collector.update(scene)
    assert collector.compute()["margin"].pixels == 0


def test_pictures(tmp_path: Path) -> None:
    model = Toy()
    scene = look(model.eval(), *Images().items[0][:2])
    with_truth, without = uncertainty_panel(scene, SPACE), uncertainty_panel(look(model, scene.image), SPACE)
    assert with_truth.shape[1] > without.shape[1]
    figure = uncertainty_figure(error_detection(model, loader()), "toy")
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 3]
    figure.savefig(tmp_path / "figure.png")
