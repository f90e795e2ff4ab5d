from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from protoseg.cli.dataset import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """``camvid`` with a day and a dusk image: road everywhere, by day 4 pixels of car."""
    for name, cars in (("0006R0_f00001", 4), ("0001TP_000001", 0)):
        mask = np.full((10, 10), 3, np.uint8)
        mask.flat[:cars] = 8
        for folder, array in (("train", np.zeros((10, 10, 3), np.uint8)), ("trainannot", mask)):
            (tmp_path / "camvid" / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(tmp_path / "camvid" / folder / f"{name}.png"), array)
    return tmp_path


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_statistics_of_a_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["stats", "camvid", f"paths.data={data}"])
    shown = capsys.readouterr().out
    assert "camvid: 2 training masks" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert ["Road", "196", "98.000", "2", "100", "0.00"] in rows
    assert ["Car", "4", "2.000", "1", "4", "100.00"] in rows
    assert ["Sky", "0", "0.000", "0", "0", "0.00"] in rows
    (file,) = (data / "camvid").glob("protoseg_statistics_train_camvid_*.json")
    assert f"File: {file}" in shown
    before = file.stat().st_mtime_ns
    main(["stats", "camvid", f"paths.data={data}"])
    assert file.stat().st_mtime_ns == before


def test_statistics_of_adaptation_are_the_sources(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["stats", "camvid_day_to_dusk", f"paths.data={data}", "data.source.dataset.sequences=[0006R0]"])
    assert "camvid_day_to_dusk: 1 training masks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvdi"], "unknown data 'camvdi'. Did you mean 'camvid'"),
        (["camvid", "data.roo=x"], "Did you mean 'data.root'"),
        (["camvid", "data.root=/nowhere"], "expected the folder /nowhere/train, which does not exist"),
    ],
)
def test_wrong_input_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["stats", *arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")


def test_it_runs_as_a_module(data: Path) -> None:
    command = [sys.executable, "-m", "protoseg.data", "stats", "camvid", f"paths.data={data}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "training masks" in result.stdout
