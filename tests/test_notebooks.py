"""The notebooks run from first to last cell and draw their pictures; git holds none of their outputs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import IPython.display
import nbformat
import numpy as np
import pytest
from PIL import Image

from protoseg import cli
from protoseg.evaluation.pictures import empty_figure
from protoseg.notebook import open_run, show, train
from protoseg.types import ProtosegError
from tests.conftest import TINY

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SMALL = {
    "01_prototype_activations": {"IMAGES": 3, "PIXELS": 60},
    "02_choose_k": {"IMAGES": 2},
    "03_domain_adaptation": {"IMAGES": 3},
    "04_new_classes": {"SHOTS": [1, 2], "DRAWS": 1},
    "05_own_folder": {"IMAGES": 12},
}
"""What the cell tagged ``parameters`` says, otherwise."""

LONG = ("02_choose_k", "03_domain_adaptation", "04_new_classes", "05_own_folder")
"""Too long for every day even so: a sweep; two trainings; a trial; a check, a training, a report and four lessons."""

STEPS = ("trainer.max_steps=2", "trainer.val_check_interval=2", "threads=1", "callbacks.dashboard=null")
FAST = (*(setting for setting in TINY if not setting.startswith(("head.", "trainer.max_steps"))), *STEPS)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory in which every training is a tiny one."""
    real = cli.train

    def tiny() -> None:
        sys.argv += FAST
        real()

    monkeypatch.setattr(cli, "train", tiny)
    monkeypatch.setattr("protoseg.teach.statistics.MAX_IMAGES", 8)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command line sets it; here it is to be unset again
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield tmp_path
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Every picture that is displayed."""
    shown: list[np.ndarray[Any, Any]] = []

    def keep(picture: Any) -> None:
        shown.append(np.asarray(Image.open(BytesIO(picture.data)).convert("RGB")))

    monkeypatch.setattr(IPython.display, "display", keep)
    return shown


def test_all_have_a_small_form() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_in_git(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
        assert max(map(len, cell.source.splitlines())) <= 140


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in LONG)) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs(path: Path, workplace: Path, pictures: list[np.ndarray[Any, Any]]) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    parameters = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), names)
        if cell is parameters:
            assert names.keys() >= SMALL[path.stem].keys()
            names.update(SMALL[path.stem])
    assert len(pictures) >= sum("show(" in cell.source for cell in cells)
    assert all(picture.std() > 1 for picture in pictures)  # none is blank
    assert [folder.name for folder in workplace.iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_as_it_is_in_a_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) >= sum("show(" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs if output.output_type == "error"]


def test_a_training_is_done_once(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = train("run", "head.num_prototypes=2")
    written = checkpoint.stat().st_mtime_ns
    assert "python train.py head.num_prototypes=2 hydra.run.dir=run" in capsys.readouterr().out
    assert train("run", "head.num_prototypes=2") == checkpoint == Path("run/checkpoints/last.ckpt")
    assert checkpoint.stat().st_mtime_ns == written
    assert "Nothing to do: all 2 steps were done before" in capsys.readouterr().out
    with pytest.raises(ProtosegError, match="exit code 1"):
        train("run", "head.num_prototypes=3")  # another training is not what is there
    assert "head.num_prototypes" in capsys.readouterr().err

    run = open_run(checkpoint, limit=2)
    assert (len(run.images.dataset), run.model.training) == (2, False)
    named, other = (Path(next(iter(open_run(checkpoint, *more).images)).name[0]) for more in ((), ("split=train",)))
    assert named != other

    os.remove("run/curves.png")  # it was interrupted before its end
    train("run", "head.num_prototypes=2")
    assert "resume=auto" in capsys.readouterr().out


def test_wrong_settings_are_an_error(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.argv
    with pytest.raises(ProtosegError, match="exit code 1"):
        train("run", "head.num_prototype=2")
    assert "num_prototypes" in capsys.readouterr().err
    assert sys.argv is before


def test_show_takes_pictures_and_figures(pictures: list[np.ndarray[Any, Any]]) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    show(photo)
    assert np.array_equal(pictures[0], photo)
    figure = empty_figure(4, 2)
    figure.add_subplot().plot([0, 1])
    show(figure)
    height, width = pictures[1].shape[:2]
    assert width == pytest.approx(2 * height, rel=0.1)
