"""What an installed wheel must do, from an empty folder: ``make dist`` runs this file outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

TINY = [
    "encoder.name=test_efficientnet",
    "encoder.pretrained=false",
    "decoder.pyramid_channels=16",
    "decoder.segmentation_channels=32",
    "head.num_prototypes=2",
    "data.crop_size=[64,64]",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "schedule.warmup_steps=0",
    "trainer.accelerator=cpu",
    "threads=1",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with a trained run in it."""
    place = tmp_path_factory.mktemp("elsewhere")
    protoseg(place, "train", *TINY, "hydra.run.dir=run")
    return place


def protoseg(place: Path, *arguments: str) -> str:
    """The output of the installed command."""
    command = [str(Path(sys.executable).parent / "protoseg"), *arguments]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_says_what_it_is(tmp_path: Path) -> None:
    assert protoseg(tmp_path, "--version").startswith("protoseg ")
    assert "train" in protoseg(tmp_path, "--help")


def test_the_labelling_page_is_there(tmp_path: Path) -> None:
    code = "import os, protoseg.labelling_page as app; print(*os.listdir(app.__path__[0]))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {"commands.py", "page"} <= set(found.stdout.split())


def test_a_run_is_evaluated(place: Path) -> None:
    protoseg(place, "evaluate", "run/checkpoints/last.ckpt", "hydra.run.dir=evaluated")
    assert 0 <= json.loads((place / "evaluated" / "metrics.json").read_text())["mIoU"] <= 1


def test_a_run_is_loaded_and_predicts(place: Path) -> None:
    code = (
        "import numpy, protoseg; model = protoseg.load('run/checkpoints/last.ckpt', device='cpu');"
        "print(model.predict(numpy.zeros((70, 50, 3), numpy.uint8)).labels.shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert result.stdout.strip() == "(70, 50)", result.stderr
