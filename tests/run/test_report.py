"""``evaluate.py … report=true``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from protoseg.run import analyse
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.conftest import TINY

SHORT = (*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["prototype", "parametric"])
def test_page_of_a_run(
    head: str,
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(analyse, "PROTOTYPE_IMAGES", 3)
    monkeypatch.setattr(analyse, "VIEWS", 2)
    prototype = head == "prototype"
    overrides = SHORT if prototype else [*(x for x in SHORT if "num_prototypes" not in x), "head=parametric"]
    run_training(configure("train", *overrides))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    score = run_evaluation(
        configure("evaluate", f"ckpt_path={checkpoint}", "report=true", "num_workers=0", "save=[]", "device=cpu")
    )
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"<b>{100 * score:.2f} %</b><span>mIoU</span>" in text
    assert "training curves" in text  # the run's logs lie beside the checkpoint
    assert text.count('class="worst"') == 6
    assert ('id="pixels"' in text) == prototype
    assert ("looked at in 3 training images" in text) == prototype
    out = capsys.readouterr().out
    assert re.search(r"Page: .*report.html \(\d+\.\d MB\)", out)


def test_page_needs_labels(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(ProtosegError, match="report: expected mode=evaluate, got mode=predict"):
        run_evaluation(configure("evaluate", "ckpt_path=x.ckpt", "mode=predict", "images=.", "report=true"))
