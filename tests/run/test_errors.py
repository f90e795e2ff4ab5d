"""Wrong input on the command line: one message, exit code 1, the nearest valid name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from omegaconf import DictConfig
from PIL import Image

from protoseg import cli
from protoseg import data as data_module
from protoseg.checkpoint import read_checkpoint
from protoseg.run.build import method_terms
from protoseg.run.config import explain
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.conftest import TINY

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


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(f"hydra.run.dir={tmp_path}/file/run")
    assert result.returncode == 1
    folder = f"{tmp_path}/file/run"
    assert result.stderr == (
        f"error: cannot write {folder}: [Errno 20] Not a directory: '{folder}'; choose another folder\n"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied", "/x/run"),
            "cannot write /x/run: Permission denied (the folder is re",
        ),
        (OSError(28, "No space left on device"), "No space left on device ("),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "),
            "a loader process died (Killed), mos",
        ),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. "), "ran out of shared memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "smaller data.batch_size",
        ),
        (MemoryError("Unable to allocate 48 GiB\nfor an array"), "out of memory (Unable to allocate 48 GiB\\nfor an"),
        (ValueError("Config group override must be a string or a list. Got int"), "Got int; choose one by its name"),
        (FileNotFoundError(2, "No such file or directory", "x"), None),
        (RuntimeError("a fault of the program"), None),
    ],
)
def test_what_the_system_refuses_is_told_in_one_line(error: Exception, message: str | None) -> None:
    said = explain(error, "train")
    if message is None:
        assert said is None
    else:
        assert said is not None
        assert message in said
        assert "\n" not in said


def test_what_is_advised_where_memory_is_short_composes(configure: Callable[..., DictConfig]) -> None:
    advised = re.search(r"to predict: (.+)\)$", explain(MemoryError("no room"), "evaluate") or "")
    assert advised is not None
    cfg = configure("evaluate", "ckpt_path=x.ckpt", *advised[1].split())
    assert (cfg.inference.mode, list(cfg.inference.crop_size)) == ("slide", [512, 512])


def test_missing_data_names_the_source(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(ProtosegError, match=f"{re.escape(str(tmp_path / 'camvid'))}.*SegNet"):
        run_training(configure("train", *TINY, "data=camvid", f"paths.data={tmp_path}"))


@pytest.mark.slow
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
import runpy, sys, time
sys.argv = ["{script}", "--help"]
try:
    runpy.run_path("{script}", run_name="__main__")
except SystemExit:
    pass
finally:
    assert "torch" not in sys.modules, "torch was imported"
    assert time.process_time() < 5  # under 1 s where the machine is idle
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout
    assert "Available" not in result.stderr


def spoilt_streets(tmp_path: Path, image: bytes | None = None, mask: Image.Image | None = None) -> Path:
    """A copy of a few built-in scenes with one spoilt file, and another one as validation."""
    source = Path(data_module.__file__).parent / "streets" / "day"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            folder = tmp_path / "streets" / "day" / split / kind
            folder.mkdir(parents=True)
            for file in sorted((source / split / kind).iterdir())[:4]:
                shutil.copy(file, folder)
    folder = tmp_path / "streets" / "day" / "train"
    if image is not None:
        (folder / "images" / "0002.jpg").write_bytes(image)
    if mask is not None:
        mask.save(folder / "labels" / "0002.png")
    return tmp_path / "streets"


TRUNCATED = (Path(data_module.__file__).parent / "streets" / "day" / "train" / "images" / "0002.jpg").read_bytes()[
    :3000
]


@pytest.mark.parametrize(
    ("spoilt", "expected"),
    [
        ({"image": TRUNCATED}, ["0002.jpg"]),
        pytest.param({"image": b"not an image"}, ["0002.jpg"], marks=pytest.mark.slow),
        pytest.param({"mask": Image.new("L", (320, 240), 77)}, ["0002.png", "77"], marks=pytest.mark.slow),
        pytest.param({"mask": Image.new("RGB", (320, 240))}, ["0002.png", "RGB"], marks=pytest.mark.slow),
        pytest.param({"mask": Image.new("L", (32, 24), 3)}, ["0002", "24"], marks=pytest.mark.slow),
    ],
    ids=["truncated", "no image", "unknown id", "RGB mask", "another size"],
)
def test_bad_files_are_named_by_a_worker(
    spoilt: dict, expected: list[str], configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    root = spoilt_streets(tmp_path, **spoilt)
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever torch makes of it
        run_training(configure("train", f"data.root={root}", *TINY, "data.num_workers=1", "trainer.max_steps=4"))
    said = explain(error.value, "train")
    assert said is not None
    assert all(word in said for word in expected), said


def test_what_an_experiment_set_for_another_choice_is_told(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "experiment=small_pgpc", "data=streets_day_to_dusk", "contrast=sepico_proto")
    with pytest.raises(Exception) as error:  # noqa: PT011 - Hydra's
        method_terms(cfg)
    said = explain(error.value, "train") or ""
    assert said.startswith("contrast.reliable: expected settings of ClassMeanContrast, got one that it does not have;")
    assert "~contrast.reliable" in said


def test_a_full_disk_of_the_runs_folder_is_named_where_the_system_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(named: list[str], cfg: DictConfig) -> float:
        raise OSError(28, "No space left on device", *named)

    for named, place in ([], f"{tmp_path}/run"), (["/c/d"], "/c/d"):
        monkeypatch.setattr(sys, "argv", ["protoseg", f"hydra.run.dir={tmp_path}/run"])
        with pytest.raises(SystemExit, match="1"):
            cli._run("train", partial(task, named))
        assert f"cannot write {place}: No space left" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_runs_every_combination(tmp_path: Path) -> None:
    result = run(
        "-m", *TINY, "trainer.max_steps=1", "head.num_prototypes=1,2", "seed=0,1", f"hydra.sweep.dir={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    shapes = []
    for job in range(4):
        state = read_checkpoint(tmp_path / str(job) / "checkpoints" / "last.ckpt")["state_dict"]
        shapes.append(state["model.head.memory.prototypes"].shape[1])
    assert shapes == [1, 1, 2, 2]
