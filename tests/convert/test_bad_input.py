"""Files that are no published weights, or not those of the network: one sentence each, nothing run, nothing written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protoseg.cli.main import run_tool
from protoseg.run.convert import convert
from protoseg.types import ProtosegError

from .conftest import published_state

State = dict[str, Tensor]
CLASSIFIER = "model.decode_head.conv_seg"


@pytest.fixture(scope="module")
def state() -> State:
    return published_state("daformer_mit_b0")


class Code:
    """A harmless marker that unpickling would make."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def eighteen(state: State) -> State:
    return {name: value[:18] if name.startswith(CLASSIFIER) else value for name, value in state.items()}


def another(state: State) -> State:
    return {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}


def unlike(state: State) -> State:
    kept = {name: value for name, value in state.items() if "norm1.weight" not in name}
    return kept | {f"model.more.{i}": torch.zeros(1) for i in range(12)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (eighteen, "expected the 19 classes of cityscapes, got 18"),
        (another, "expected one of DAFormer; .* with the names conv1.weight, fc.bias"),
        (unlike, r"9 missing: encoder\.model.*; 12 unexpected: more\.0, (more\.\d, ){8}more\.9, \.\.\."),
        (lambda state: {n: v for n, v in state.items() if n != f"{CLASSIFIER}.weight"}, "head.classifier.weight"),
        (lambda state: state | {f"{CLASSIFIER}.bias": torch.full((19,), torch.nan)}, "finite numbers"),
        (lambda state: {"module.proj_head.mlp2.0.weight": torch.zeros(2)}, "ProtoSeg: expected all of that network"),
        (lambda state: {"module.proj_head.mlp2.0.weight": 3}, "got none in"),
    ],
)
def test_misfit(change: Callable[[State], State], said: str, state: State, tmp_path: Path, capsys: Any) -> None:
    file, out = tmp_path / "a.pth", tmp_path / "a.ckpt"
    torch.save({"state_dict": change(state)}, file)
    with pytest.raises(SystemExit):
        run_tool("convert", [str(file), str(out)])
    message = capsys.readouterr().err
    assert re.search(said, message)
    assert message.count("\n") == 1, "one line"
    assert str(file) in message
    assert not out.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(zipped: bool, state: State, tmp_path: Path) -> None:
    file, marker = tmp_path / "a.pth", tmp_path / "marker"
    torch.save({"state_dict": state, "meta": Code(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ProtosegError, match=r"it asks for \w+\.mkdir.*refused"):
        convert(file, tmp_path / "a.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("left", [0, 100, 0.5, 0.999])
def test_truncated(zipped: bool, left: float, state: State, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content)) if left < 1 else int(left)])
    with pytest.raises(ProtosegError, match="not readable as tensors"):
        convert(file, tmp_path / "a.ckpt")


def test_own_checkpoint_wrong_network_wrong_names_of_classes(state: State, tmp_path: Path) -> None:
    file, out = tmp_path / "a.pth", tmp_path / "a.ckpt"
    classes = ["sidewalk", "road"]
    torch.save({"state_dict": state, "meta": {"CLASSES": classes}}, file)
    with pytest.raises(ProtosegError, match="got 'sidewalk' in place of 'road'; choose the data"):
        convert(file, out)
    torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=False)  # of torch before 1.6
    with pytest.raises(ProtosegError, match=r"a teacher .* got one without"):
        convert(file, out, network="teacher")
    with pytest.raises(ProtosegError, match="one of student, teacher, got 'best'"):
        convert(file, out, network="best")
    with pytest.raises(ProtosegError, match="another file to write"):
        convert(file, file)
    convert(file, out)
    with pytest.raises(ProtosegError, match="checkpoint of protoseg already"):
        convert(out, tmp_path / "b.ckpt")
