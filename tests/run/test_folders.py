"""A run's folder before its start: refused where a run is there, emptied of it, gone on with, or new."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from protoseg.job_records import alone_in
from protoseg.run import multirun
from protoseg.run.config import CONFIG_DIR
from protoseg.run.multirun import SweepCallback
from protoseg.run.resuming import check_folder, run_in
from protoseg.types import ProtosegError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with all that a run writes, and with things that are not its own."""
    folder = tmp_path / "run"
    for name in (
        "checkpoints/best.ckpt",
        "panels/step_000001.png",
        "workers/config.yaml",
        "workers/run_a1b2c3d4/1.log",
        "curves.png",
        "error.log",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("logs/metrics.csv", "logs_1/metrics.csv"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("step,loss\n0,1\n")
    for name in ("notes.txt", "logs_of_mine/a", "evaluate/metrics.json", ".hydra/config.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_run_is_known_by_its_checkpoints_or_by_a_row_of_its_log(run: Path) -> None:
    assert run_in(run) == "checkpoints/best.ckpt"
    (run / "checkpoints" / "best.ckpt").rename(run / "checkpoints" / ".best.1.partial.ckpt")  # a kill left it
    assert run_in(run) == "logs/metrics.csv"
    for log in run.glob("logs*/metrics.csv"):
        log.write_text("step,loss\n")
    assert run_in(run) is None
    assert run_in(run / "nothing") is None


def test_a_run_is_not_written_over(run: Path, tmp_path: Path) -> None:
    for resume in (None, str(tmp_path / "other" / "checkpoints" / "last.ckpt")):
        with pytest.raises(ProtosegError, match=r"holds a run already .*resume=auto.*hydra\.run\.dir=.*overwrite=true"):
            check_folder(run, resume, overwrite=False)
    for resume in ("auto", str(run / "checkpoints" / "best.ckpt")):
        check_folder(run, resume, overwrite=False)
        with pytest.raises(ProtosegError, match="got both"):
            check_folder(run, resume, overwrite=True)
    with pytest.raises(ProtosegError, match="resume: expected auto, null or a checkpoint, got True"):
        check_folder(run, True, overwrite=False)  # type: ignore[arg-type]
    assert run_in(run) == "checkpoints/best.ckpt"


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(run: Path, tmp_path: Path) -> None:
    mine = ("checkpoints/notes.txt", "checkpoints/old/best.ckpt", "logs/notes.csv", "panels/mine.png")
    (run / "checkpoints" / "old").mkdir()
    for name in mine:
        (run / name).touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "events.out.tfevents.1").touch()
    (run / "tensorboard").symlink_to(tmp_path / "disk")
    check_folder(run, None, overwrite=True)
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if not path.is_dir()}
    assert left == {*mine, ".hydra/config.yaml", "evaluate/metrics.json", "logs_of_mine/a", "notes.txt"}
    assert not (run / "workers").exists()
    assert list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_scheduler_goes_on_in_its_folder(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    check_folder(run, None, overwrite=True)
    assert run_in(run) == "checkpoints/best.ckpt"


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DictConfig]:
    """``composed(*overrides, mode=…)``: what Hydra hands to its hooks, as started in ``tmp_path`` at one moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROTOSEG_RUN_NAME", raising=False)
    monkeypatch.setattr(multirun, "_folder", None)

    def compose(*overrides: str, mode: RunMode = RunMode.RUN) -> DictConfig:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            OmegaConf.register_new_resolver("now", lambda _: "now", replace=True)  # Hydra's own comes back with it
            hydra = GlobalHydra.instance().hydra
            arguments = [*overrides, f"hydra.mode={mode.name}"]
            config = hydra.compose_config("train", arguments, run_mode=mode, from_shell=False)
            if mode == RunMode.MULTIRUN:
                multirun.start(config)
        return config

    return compose


def test_runs_of_one_second_get_two_folders(composed: Callable[..., DictConfig]) -> None:
    folders = []
    for _ in range(3):
        config, callback = composed("paths.output=${hydra:run.dir}"), SweepCallback()
        callback.on_run_start(config)
        callback.on_run_end(config)
        folders.append(Path(config.hydra.run.dir))
    assert [folder.name for folder in folders] == ["now", "now_1", "now_2"]
    assert all((folder / "job.lock").is_file() for folder in folders)
    named = [composed("hydra.run.dir=mine") for _ in range(2)]
    for config in named:  # nothing of a run is there yet
        callback = SweepCallback()
        callback.on_run_start(config)
        callback.on_run_end(config)
        assert config.hydra.run.dir == "mine"


def test_sweeps_of_one_second_get_two_folders(composed: Callable[..., DictConfig]) -> None:
    first, second = (composed("seed=0,1", "threads=1", mode=RunMode.MULTIRUN) for _ in range(2))
    folders = [Path(config.hydra.sweep.dir) for config in (first, second)]
    assert [folder.name for folder in folders] == ["now", "now_1"]
    assert all((folder / "manifest.json").is_file() for folder in folders)
    assert f"hydra.sweep.dir={folders[1]}" in second.hydra.overrides.hydra  # of which its jobs are composed


def test_a_sweep_is_not_overwritten(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ProtosegError, match="overwrite: expected false for a multirun"):
        composed("seed=0,1", "overwrite=true", mode=RunMode.MULTIRUN)


def test_two_runs_in_one_folder_at_a_time(
    composed: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"""
from pathlib import Path
from protoseg.job_records import alone_in
with alone_in(Path({str(tmp_path)!r}, 'mine')):
    print("in", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        callback = SweepCallback()
        with pytest.raises(SystemExit):
            callback.on_run_start(composed("hydra.run.dir=mine", "resume=auto"))
        assert "another process is training there" in capsys.readouterr().err
        other.kill()
    callback.on_run_start(composed("hydra.run.dir=mine"))
    callback.on_run_end(composed("hydra.run.dir=mine"))


def test_of_several_processes_the_first_looks(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    SweepCallback().on_run_start(composed(f"hydra.run.dir={run}"))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        SweepCallback().on_run_start(composed(f"hydra.run.dir={run}"))


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProtosegError, match=r"cannot write .*file/run"), alone_in(tmp_path / "file" / "run"):
        pass
