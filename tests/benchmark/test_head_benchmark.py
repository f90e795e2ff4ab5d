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
    assert "over softmax twin" in capsys.readouterr().out
