"""The released head is run from a file that the caller has; here a stand-in of our own with the same method."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.head import HeadSetting, head_steps, make_core
from benchmarks.machine import about
from benchmarks.released import released_head
from protoseg.types import ProtosegError

STAND_IN = """
import torch
from torch import nn

from parts.table import first_of


class Head(nn.Module):
    def __init__(self):
        raise AssertionError("the whole network is not wanted")

    def prototype_learning(self, embeddings, scores, label, cosines):
        assert cosines.shape == (len(label), self.num_prototype, self.num_classes)
        target = torch.where(label < 0, label, label * self.num_prototype)
        self.prototypes = nn.Parameter(self.prototypes.data * self.gamma, requires_grad=False)
        return embeddings @ self.prototypes.flatten(0, 1).T, first_of(target)
"""
SETTING, CPU = HeadSetting(200, 4, 3, 8), torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "table.py").write_text("def first_of(target):\n    return target\n")
    path = tmp_path / "nets" / "head.py"
    path.parent.mkdir()
    path.write_text(STAND_IN)
    return path


def test_the_head_of_a_file(file: Path) -> None:
    before = [*sys.path]
    step = head_steps(SETTING, CPU, file)["released"]
    assert sys.path == before
    loss, gradient = step()  # type: ignore[misc]
    assert torch.isfinite(loss)
    assert gradient.shape == (200, 8)
    assert gradient.abs().sum() > 0


def test_without_a_file_it_is_left_out() -> None:
    assert "released" not in head_steps(SETTING, CPU)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "got no file"),
        ("import a_module_that_is_not_there", "put what it imports on PYTHONPATH"),
        ("", "got none"),
    ],
)
def test_a_file_that_does_not_do(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "head.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProtosegError, match=said):
        released_head(path, make_core(SETTING, CPU).prototypes)


def test_the_machine_of_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    said = about(CPU)
    assert said["torch"] == torch.__version__
    assert said["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in str(said["limited by"])
    assert said["device"]
