"""Wrong input on the command line: one message, exit code 1, the nearest valid name. The real programs are run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, script: str = "train.py", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("encoder=resnet5", "'resnet50'"),
        ("decoder=fppn", "'fpn'"),
        ("experiment=camvid_prototyp", "'camvid_prototype'"),
        ("trainer.max_step=10", "'trainer.max_steps'"),
        ("max_steps=10", "'trainer.max_steps'"),
        ("decodr=fpn", "'decoder'"),
        ("optimizer.lrr=1", "'optimizer.lr'"),
    ],
)
def test_misspelt_overrides_suggest_the_nearest_name(override: str, expected: str) -> None:
    result = run(override)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "unknown" in result.stderr
    assert expected in result.stderr


def test_unreadable_override() -> None:
    result = run("trainer.max_steps")
    assert result.returncode == 1
    assert "trainer.max_steps" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_data_names_the_source(tmp_path: Path) -> None:
    result = run("data=camvid", f"paths.data={tmp_path}", f"hydra.run.dir={tmp_path}/run", "encoder.pretrained=false")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "SegNet" in result.stderr
    assert str(tmp_path / "camvid") in result.stderr


def test_unknown_timm_encoder(tmp_path: Path) -> None:
    result = run("encoder.name=resnet5O", "encoder.pretrained=false", f"hydra.run.dir={tmp_path}/run")
    assert result.returncode == 1
    assert "resnet50" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_checkpoint(tmp_path: Path) -> None:
    result = run("ckpt_path=nothing.ckpt", f"hydra.run.dir={tmp_path}/run", script="evaluate.py")
    assert result.returncode == 1
    assert "no file at nothing.ckpt" in result.stderr


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_does_not_import_torch(script: str) -> None:
    code = f"""
import runpy, sys
sys.argv = ["{script}", "--help"]
try:
    runpy.run_path("{script}", run_name="__main__")
except SystemExit:
    pass
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout
    assert "Available" not in result.stderr
    assert time.perf_counter() - started < 5  # under 1 s where the machine is idle
