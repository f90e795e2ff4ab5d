"""The folder of a run before anything is written there: a new one, or one whose run goes on, or is given up."""

import os
import re
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from protoseg.run.resuming import checkpoints_in, restarted
from protoseg.types import ProtosegError

WRITTEN = {
    r"checkpoints": r".*\.ckpt|\..*\.partial.*",
    r"logs(_\d+)?": r"metrics\.csv|hparams\.yaml",
    r"panels": r"\w+_\d{6,}\.png",
    r"tensorboard": r"events\.out\.tfevents.*|hparams\.yaml",
    r"workers": r"config\.yaml|result\.json|run_\w{8}",
}
"""Folders of a run, and the files in them, that ``overwrite=true`` removes, besides ``curves.png`` and ``error.log``.

Others in there are the user's."""


def reserve(default: str, section: DictConfig) -> str:
    """Make the folder ``default``, under another name where it is taken, if ``section`` names it by the time only."""
    by_time = "${now:" in OmegaConf.to_container(section, resolve=False)["dir"]  # type: ignore[index,call-overload]
    if not by_time or "PROTOSEG_RUN_NAME" in os.environ:
        return default
    Path(default).parent.mkdir(parents=True, exist_ok=True)
    folder, number = default, 0
    while True:
        try:
            os.mkdir(folder)
            return folder
        except FileExistsError:
            number += 1
            folder = f"{default}_{number}"


def check_folder(folder: Path, resume: str | None, overwrite: bool) -> None:
    """See that a run about to start in ``folder`` destroys none that is there; with ``overwrite``, remove that."""
    if not isinstance(resume, str | None):
        raise ProtosegError(f"resume: expected auto, null or a checkpoint, got {resume!r}")
    found = run_in(folder)
    if restarted() or not found:
        return
    if overwrite:
        if resume is not None:
            raise ProtosegError(
                f"expected resume={resume} or overwrite=true, got both: the one goes on with the run in {folder}, the "
                "other removes it"
            )
        remove_run(folder)
    elif resume != "auto" and (resume is None or Path(resume).resolve().parent != (folder / "checkpoints").resolve()):
        raise ProtosegError(
            f"{folder} holds a run already ({found}): go on with it by resume=auto, choose another folder with "
            "hydra.run.dir=…, or remove it with overwrite=true"
        )


def run_in(folder: Path) -> str | None:
    """A file of a run in ``folder``: a checkpoint, or a log with rows; None where there is no run."""
    for checkpoint in checkpoints_in(folder / "checkpoints"):
        return f"checkpoints/{checkpoint.name}"
    for log in sorted(folder.glob("logs*/metrics.csv")):
        with open(log, "rb") as file:
            if len([*zip(range(2), file, strict=False)]) == 2:  # a row below the names
                return f"{log.parent.name}/{log.name}"
    return None


def remove_run(folder: Path) -> None:
    """Remove what a run has written into its folder, and nothing else."""
    for path in folder.iterdir():
        files = next((files for name, files in WRITTEN.items() if re.fullmatch(name, path.name)), None)
        if path.name in ("curves.png", "error.log") or (files and path.is_symlink()):
            path.unlink()
        elif files and path.is_dir():
            for file in path.iterdir():
                if re.fullmatch(files, file.name):
                    shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
            if not any(path.iterdir()):
                path.rmdir()
