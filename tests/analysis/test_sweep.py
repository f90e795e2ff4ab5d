"""A sweep's table and plots: mean and sample standard deviation over seeds, what is missing, what is drawn."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from protoseg.analysis.sweep import compare_settings, heat_figure, markdown, score_figure
from protoseg.cli.main import run_tool
from protoseg.job_records import Job, Sweep, read_sweep, write_job, write_manifest
from protoseg.run.multirun import compare
from protoseg.types import ProtosegError


def make_sweep(folder: Path, swept: Mapping[str, Sequence[object]], scores: Sequence[float | None]) -> Sweep:
    """A sweep in ``folder``; jobs whose score is None have failed, and those beyond the scores wait."""
    jobs = []
    for number, values in enumerate(itertools.product(*swept.values())):
        overrides = ("trainer.max_steps=9", *(f"{key}={value}" for key, value in zip(swept, values, strict=True)))
        job = Job(number, overrides, folder / str(number))
        if number < len(scores):
            score = scores[number]
            job = Job(number, overrides, folder / str(number), "failed", error="disk full")
            if score is not None:
                job = Job(number, overrides, folder / str(number), "done", score, 10.0 * (number + 1))
            write_job(job)
        jobs.append(job)
    sweep = Sweep(folder, ("trainer.max_steps=9",), tuple(swept), True, tuple(jobs))
    write_manifest(sweep)
    return read_sweep(folder)


def test_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    sweep = make_sweep(
        tmp_path, {"seed": [0, 1, 2], "head.num_prototypes": [1, 10]}, [0.60, 0.61, 0.62, None, 0.64, 0.65]
    )
    comparison = compare_settings(sweep)
    assert comparison.names == ("num_prototypes",)
    one, ten = comparison.settings
    assert (one.values, ten.values) == (("1",), ("10",))
    assert one.scores == (0.60, 0.62, 0.64)
    assert one.mean == pytest.approx(0.62)
    assert one.std == pytest.approx(0.02)  # of a sample: divided by n - 1
    assert ten.scores == (0.61, 0.65)
    text = markdown(sweep, comparison)
    assert "| 1 | 62.0 ± 2.0 | 3 | 60.0, 62.0, 64.0 |" in text
    assert "| 10 | 63.0 ± 2.8 | 2 of 3 | 61.0, 65.0 |" in text
    assert "- job 3 (seed=1 num_prototypes=10): failed. disk full" in text


def test_files_of_an_unfinished_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path / "sweep", {"head.num_prototypes": [1, 10], "seed": [0, 1]}, [0.5, 0.6, 0.7])
    run_tool("analyse", ["sweep", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        one, ten = csv.DictReader(file)
    assert (float(one["mean"]), one["n"], one["jobs"], one["seconds"]) == (0.55, "2", "2", "15.0")
    assert float(one["std"]) == pytest.approx(math.sqrt(0.005))
    assert (ten["mean"], ten["std"], ten["n"], ten["jobs"]) == ("0.7", "", "1", "2")
    with open(tmp_path / "out" / "jobs.csv", newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states == ["done", "done", "done", "waiting"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.csv", "table.md", "jobs.csv", "scores.png"}
    assert "job 3 (num_prototypes=10 seed=1): waiting" in capsys.readouterr().out


def test_another_metric_is_the_last_value_in_the_log(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {"seed": [0, 1, 2]}, [0.5, 0.6, 0.7])  # the last one has no log
    for job, value in zip(sweep.jobs, (0.25, 0.75), strict=False):
        (job.folder / "logs").mkdir(parents=True)
        (job.folder / "logs" / "metrics.csv").write_text(f"step,val/teacher_mIoU\n1,0.1\n2,{value}\n3,\n")
    (setting,) = compare_settings(sweep, "val/teacher_mIoU").settings
    assert setting.scores == (0.25, 0.75)
    with pytest.raises(ProtosegError, match="val/teacher_mIoU"):
        compare_settings(sweep, "val/nothing")


def test_wrong_folders_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match=r"manifest\.json"):
        compare(tmp_path, None, None)
    make_sweep(tmp_path, {"seed": [0, 1]}, [None])
    with pytest.raises(ProtosegError, match=r"at least one job with a score, got none \(1 failed, 1 waiting\)"):
        compare(tmp_path, None, None)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ProtosegError, match="damaged"):
        compare(tmp_path, None, None)


def test_scores_are_drawn_at_their_places(tmp_path: Path) -> None:
    swept = {"head": ["prototype", "parametric"], "head.num_prototypes": [1, 50], "seed": [0, 1]}
    scores = [0.50, 0.52, 0.60, 0.62, 0.40, 0.42, 0.44, 0.46]
    (axes,) = score_figure(compare_settings(make_sweep(tmp_path, swept, scores))).axes
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_ylabel()) == ("num_prototypes", "log", "mIoU (%)")
    means = {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}
    assert np.allclose(means["head = prototype"], [(1, 51), (50, 61)])
    assert np.allclose(means["head = parametric"], [(1, 41), (50, 45)])
    low, high = axes.get_ylim()
    assert low < 40 < 62 < high
    std = 100 * math.sqrt(0.0002)
    (bars,) = axes.containers[0].lines[2]
    assert np.allclose(bars.get_segments()[0][:, 1], [51 - std, 51 + std])


def test_names_are_drawn_side_by_side_and_the_rest_in_panels(tmp_path: Path) -> None:
    swept = {"encoder": ["a", "b", "c"], "head": ["p", "q"], "decoder": ["x", "y"]}
    comparison = compare_settings(make_sweep(tmp_path, swept, [i / 100 for i in range(12)]))
    first, second = score_figure(comparison).axes
    assert [label.get_text() for label in first.get_xticklabels()] == ["a", "b", "c"]
    assert (first.get_title(), second.get_title()) == ("decoder = x", "decoder = y")
    assert [bars.get_label() for bars in second.containers] == ["head = p", "head = q"]
    assert np.allclose(second.containers[1].lines[0].get_ydata(), [3, 7, 11])
    assert heat_figure(comparison) is None


def test_one_run_each_draws_no_trend_of_noise(tmp_path: Path) -> None:
    swept = {"head.num_prototypes": [1, 5, 10]}
    (axes,) = score_figure(compare_settings(make_sweep(tmp_path, swept, [0.661, 0.663, 0.667]))).axes
    low, high = axes.get_ylim()
    assert low < 62 < 71 < high
    assert axes.get_ylabel() == "mIoU (%), one run each"


def test_two_numbers_have_a_heat_map(tmp_path: Path) -> None:
    swept = {"contrast.temperature": [0.5, 0.07, 0.2], "contrast.weight": [0.1, 0.3, 1]}
    figure = heat_figure(compare_settings(make_sweep(tmp_path, swept, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])))
    assert figure is not None
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.07", "0.2", "0.5"]
    expected = [[40, 70, 10], [50, 80, 20], [60, np.nan, 30]]
    assert np.allclose(np.ma.filled(axes.images[0].get_array(), np.nan), expected, equal_nan=True)
    assert {text.get_text(): to_hex(text.get_color()) for text in axes.texts}["80.0"] == "#000000"
