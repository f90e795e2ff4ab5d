"""The benchmark runs, measures both heads, and writes what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from protoseg.benchmark.__main__ import main


def test_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "head.json"
    sizes = ["--batch", "1", "--height", "32", "--width", "32", "--channels", "8", "--pairs", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "head", *sizes, "--device", "cpu", "--json", str(file)])
    main()
    result = json.loads(file.read_text())["result"]
    assert result["parametric"][1] == 1
    assert result["prototype"][0] > 0
    assert "over parametric" in capsys.readouterr().out


def test_adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "adaptation.json"
    sizes = ["--batch", "2", "--height", "64", "--width", "64", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "adaptation", *sizes, "--device", "cpu", "--json", str(file)])
    main()
    result = json.loads(file.read_text())["result"]
    assert list(result) == ["dacs", "daformer", "daformer + pgpc"]
    assert result["dacs"][1] == 1
    assert all(milliseconds > 0 for milliseconds, *_ in result.values())
    dacs, daformer, pgpc = (timing[0] for timing in result.values())
    assert result["daformer + pgpc"][1:] == pytest.approx([pgpc / dacs, pgpc / daformer])  # one pair: no median
