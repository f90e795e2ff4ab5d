"""The benchmarks run, compare what computes the same, and write what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.against import Handed
from benchmarks.command import BENCHMARKS
from benchmarks.contrast import ContrastSetting, contrast_steps
from benchmarks.head import HeadSetting, head_steps, make_core
from benchmarks.inference import InferenceSetting, inference_steps
from benchmarks.loader import LoaderSetting, loader_steps
from benchmarks.memory import peak_megabytes
from benchmarks.report import exponent
from benchmarks.sinkhorn import SinkhornSetting, sinkhorn_steps

CPU = torch.device("cpu")
TINY = {
    "head": "--pixels 64 --classes 3 --prototypes 2 --channels 8",
    "sinkhorn": "--pixels 64 --classes 3 --prototypes 2",
    "contrast": "--height 5 --width 6 --channels 8",
    "twins": "--batch 1 --height 32 --width 32 --channels 8",
    "step": "--batch 2 --height 64 --width 64",
    "precision": "--batch 2 --height 64 --width 64 --hrnet 18 --compiled 0",
    "tuning": "--batch 1 --height 32 --width 32 --depth 4 --pyramid 8",
    "adaptation": "--batch 2 --height 64 --width 64",
    "against": "--batch 2 --height 64 --width 64",
    "labelling": "--height 64 --width 64 --classes 3",
    "loader": "--width 128 --height 96 --crop-height 48 --crop-width 64 --batch 2 --images 3",
    "predicting": "--photos 2 --width 96 --height 64",
    "data": "--width 128 --height 96 --crop-height 48 --crop-width 64 --images 2",
    "inference": "--height 32 --width 64 --channels 8",
}
SLOW = ("precision", "adaptation", "against", "loader", "tuning")
FIRST = {
    "head": "floor",
    "twins": "parametric",
    "step": "parametric",
    "precision": "parametric fp32",
    "adaptation": "floor",
    "against": "smp + Lightning",
    "predicting": "smp, a loop",
    "tuning": "kept maps",
}


@pytest.fixture(autouse=True)
def process_as_it_is(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("benchmarks.measure.keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # ``data`` works on one


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--device", "cpu"])
    main()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in BENCHMARKS]
)
def test_every_benchmark_writes_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    run(monkeypatch, name, *TINY[name].split(), "--pairs", "1", "--json", str(file))
    written = json.loads(file.read_text())
    (entry,) = written["runs"]
    times = [timing[0] for timing in entry["result"].values()]
    ratios = [timing[1] for timing in entry["result"].values()]
    assert ratios == pytest.approx([time / times[0] for time in times])  # one pair: no median
    assert next(iter(entry["result"])) == FIRST.get(name, next(iter(entry["result"])))
    assert entry["megabytes"].keys() == entry["result"].keys()
    assert written["machine"]["pairs"] == 1
    shown = capsys.readouterr().out
    assert "peak MB" in shown
    assert ("images/s" in shown) == (name in ("against", "data", "loader", "precision", "predicting"))
    assert f"{times[0]:.1f}" in shown


@pytest.mark.slow
def test_over_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, picture = tmp_path / "result.json", tmp_path / "plot.png"
    sizes = [*TINY["head"].split(), "--over", "classes=3,6,12"]
    run(monkeypatch, "head", *sizes, "--pairs", "1", "--json", str(file), "--plot", str(picture))
    entries = json.loads(file.read_text())["runs"]
    assert [entry["setting"]["classes"] for entry in entries] == [3, 6, 12]
    with Image.open(picture) as image:
        assert image.width > 800


@pytest.mark.parametrize("arguments", [["--over", "colours=3"], ["--over", "classes=3,x"], ["--plot", "x.png"]])
def test_wrong_sizes(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "head", *arguments)
    assert "expected" in capsys.readouterr().err


def test_wrong_hrnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "precision", "--hrnet", "19")
    assert "expected one of 18, 30, 32, 40, 44, 48, 64, got 19" in capsys.readouterr().err


def test_a_call_is_a_step_of_a_trainer() -> None:
    steps, seen = Handed("batch"), []
    Thread(target=lambda: [seen.append(batch) for batch in steps], daemon=True).start()
    steps.asked.get(timeout=20)
    assert not seen
    for made in (1, 2, 3):
        steps()
        assert len(seen) == made
    steps.asked.put(ValueError("of the Trainer"))
    with pytest.raises(ValueError, match="of the Trainer"):
        steps.wait()


def test_batches_of_the_loader_from_memory_and_files() -> None:
    steps = loader_steps(LoaderSetting(128, 96, 48, 64, 2, 3), CPU)
    for name in ("decoded before", "0 workers"):
        assert steps[name]() == [(2, 3, 48, 64), (1, 3, 48, 64)]
    whole, half = steps["decoding alone"](), steps["decoding at half size"]()  # type: ignore[misc]
    assert (whole[0].shape, half[0].shape) == ((96, 128, 3), (48, 64, 3))


def test_exponent() -> None:
    assert exponent([1, 10, 100], [2, 2 * 10**1.5, 2000]) == pytest.approx(1.5)


def test_peak_memory() -> None:
    peak = peak_megabytes(lambda: torch.ones(5 * 10**7).sum(), CPU)
    if peak is None:
        pytest.skip("the system does not tell the peak of a process")
    assert 180 < peak < 240  # other threads of the process give memory back and take some


def test_both_cores_compute_the_same() -> None:
    setting = HeadSetting(400, 5, 3, 8)
    steps = head_steps(setting, CPU)
    (loss, gradient, moved), (loss2, gradient2, moved2) = steps["fused"](), steps["loop"]()  # type: ignore[misc]
    torch.testing.assert_close(loss, loss2)
    torch.testing.assert_close(gradient, gradient2, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(moved, moved2)
    core = make_core(setting, CPU)
    assert not torch.equal(moved, core.prototypes)
    assert (core.embeddings @ core.prototypes.flatten(0, 1).T).abs().max() < 1.0001


@pytest.mark.parametrize(
    "steps",
    [
        sinkhorn_steps(SinkhornSetting(300, 5, 3), CPU),
        contrast_steps(ContrastSetting(2, 6, 7, 8, 4), CPU),
        inference_steps(InferenceSetting(32, 48, 4, 8, 5, 3), CPU),
    ],
    ids=["sinkhorn", "contrast", "inference"],
)
def test_alternatives_compute_the_same(steps: dict) -> None:  # type: ignore[type-arg]
    ours, theirs, *_ = (step() for step in steps.values())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
