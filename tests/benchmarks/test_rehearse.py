"""The rehearsal for a GPU, with tiny sizes on a CPU: every part says something, and no part takes another with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.rehearse import PARTS, Part, Row, rehearse

CPU = torch.device("cpu")
ON_GPU = {"tests", "trainings", "compiled prototype", "compiled parametric"}


@pytest.fixture(autouse=True)
def process_as_it_is(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("benchmarks.measure.keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def read(file: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    return {result["part"]: result for result in json.loads(file.read_text())["parts"]}


@pytest.mark.slow  # 20 s; the two tests below run parts of it
def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rehearsal.json"
    rehearse(list(PARTS), CPU, True, file, 60)
    results = read(file)
    assert list(results) == list(PARTS)
    assert {part: r["status"] for part, r in results.items()} == {
        part: "skipped" if part in ON_GPU else "measured" for part in PARTS
    }
    assert all(r["reason"] == "needs a GPU" for part, r in results.items() if part in ON_GPU)
    shown = capsys.readouterr().out
    for part in set(PARTS) - ON_GPU:
        assert results[part]["rows"]
        for what, figures in results[part]["rows"]:
            assert what in shown
            assert all(value >= 0 for value in figures.values())  # no NaN
    assert all(max(figures.values()) < 1e-5 for what, figures in results["errors"]["rows"] if "float32" in what)
    assert all(max(figures.values()) < 2e-2 for what, figures in results["errors"]["rows"])


def test_a_part_that_fails_or_lacks_a_package_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(device: torch.device, tiny: bool) -> Iterator[Row]:
        yield Row("first", {"ms": 1.0})
        raise RuntimeError("out of memory")

    parts = {"half": Part(half, 1), "lacking": Part(half, 1, ("no_such_package",)), "sinkhorn": PARTS["sinkhorn"]}
    monkeypatch.setattr("benchmarks.rehearse.PARTS", parts)
    file = tmp_path / "rehearsal.json"
    rehearse(list(parts), CPU, True, file, 60)
    results = read(file)
    assert (results["half"]["status"], results["half"]["reason"]) == ("failed", "RuntimeError: out of memory")
    assert results["half"]["rows"] == [["first", {"ms": 1.0}]]
    assert (results["lacking"]["status"], results["lacking"]["reason"]) == ("skipped", "without no_such_package")
    assert results["sinkhorn"]["status"] == "measured"


@pytest.mark.slow
def test_a_part_in_its_own_process_is_stopped_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it had measured until then is kept."""
    file = tmp_path / "rehearsal.json"
    monkeypatch.setitem(PARTS, "machine", PARTS["machine"]._replace(seconds=1))
    rehearse(["machine", "inference"], CPU, False, file, 60)
    results = read(file)
    assert results["machine"]["status"] == "out of time"
    assert results["inference"]["status"] == "measured"
