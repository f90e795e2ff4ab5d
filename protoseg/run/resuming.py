"""What a run goes on from, which of its settings may change meanwhile, and the folder that it has to itself."""

import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from protoseg.types import ProtosegError, told, yaml_beside

SAID, SILENT = "said", "silent"
_SAME_ENCODER = ("_target_", "name", "variant")
_TABLES = yaml_beside(__file__, "resuming.yaml")
RULES: list[tuple[str, str]] = _TABLES["changes"]
"""Patterns of keys, first match first, and what becomes of a change; :data:`SAID`, :data:`SILENT`, or why it is not."""
WRITTEN: dict[str, str] = _TABLES["written"]
"""Folders of a run, and the files in them, that ``overwrite=true`` removes; others in there are the user's."""


def checkpoint_to_resume(resume: str | None, last: Path) -> str | None:
    """``resume``; or, where it is ``auto`` or a scheduler has restarted this run, ``last`` if there is such a file."""
    if last.is_file() and (resume == "auto" or restarted()):
        return str(last)
    if resume != "auto":
        return resume
    others = checkpoints_in(last.parent)
    if others and not restarted():
        text = f"resume=auto: expected {last}, got none, but {', '.join(path.name for path in others)} beside it"
        raise ProtosegError(f"{text}; go on with resume={others[0]}, or start anew with overwrite=true, without resume")
    return None


def restarted() -> bool:
    """Whether SLURM or torchrun has started this run before."""
    counts = (os.environ.get(name) or "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(int(count) for count in counts)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints that are whole, by name."""
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith("."))


def changed_settings(path: str, checkpoint: dict[str, Any], config: dict[str, Any]) -> str:
    """Settings that were others when the checkpoint was written: ``optimizer.lr 0.002 -> 0.001, …``; often none.

    The checkpoint may be a stranger's: its config is compared and printed. Raises ProtosegError where a change cannot
    be taken over, or where the checkpoint holds weights alone.
    """
    if "loops" not in checkpoint:
        text = f"resume={path}: expected a checkpoint of a training that can go on, got weights alone"
        raise ProtosegError(f"{text}; start a new training from them with init_from={path}")
    before = checkpoint["protoseg"]["config"]
    if not isinstance(before, dict):
        raise ProtosegError(f"resume: checkpoint {path}: expected the run's config inside, got none")
    with told(lambda _: f"resume: checkpoint {path}: its config is nested too deeply", RecursionError):
        now, old = dict(_leaves(config)), dict(_leaves(before))
        # What follows from the folder is no change where only the folder changed.
        folder, to = old.get("paths.output", ""), now["paths.output"]
        moved = (key for key, value in old.items() if folder and value.startswith(folder))
        old |= {key: to + old[key].removeprefix(folder) for key in moved}
    said, refused = [], []
    for key in dict.fromkeys([*now, *old]):
        is_now = now.get(key, "null")
        was = old.get(key, "false" if is_now == "false" else "null")  # a switch that is newer than the run, and off
        if was == is_now or (rule := rule_of(key)) == SILENT:
            continue
        change = f"{_short(key)} {_short(was)} -> {_short(is_now)}"
        said.append(change) if rule == SAID else refused.append(f"{change} ({rule})")
    if refused:
        more = f", and {len(refused) - 8} more" if len(refused) > 8 else ""
        text = f"resume={path}: expected the settings of the run that it goes on with, got others that cannot change"
        raise ProtosegError(f"{text}: {', '.join(refused[:8])}{more}. Set them back, or start a new run")
    return ", ".join(said)


def take_input(cfg: DictConfig, checkpoint: dict[str, Any]) -> None:
    """Normalise images as the same encoder of a checkpoint does, where ``cfg`` leaves that to the encoder."""
    from protoseg.trusted import checked_sections  # torch, which no help waits for

    said = (checkpoint["protoseg"]["config"] or {}).get("encoder")
    if not isinstance(said, dict) or any(said.get(key) != cfg.encoder.get(key) for key in _SAME_ENCODER):
        return
    # whose class the caller's own config names
    checked_sections({"encoder": said}, ["encoder"], [cfg.encoder["_target_"].rpartition(".")[0]])
    with open_dict(cfg.encoder):
        for key in ("mean", "std"):
            if said.get(key) is not None and cfg.encoder.get(key) is None:
                cfg.encoder[key] = said[key]


def rule_of(key: str) -> str:
    """What becomes of a change of ``key``: ``SAID``, ``SILENT``, or the reason for which it is refused."""
    for patterns, rule in RULES:
        if any(fnmatchcase(key, pattern) for pattern in patterns.split()):
            return rule
    return "it is not known whether that would have an effect"


def is_finished(checkpoint: dict[str, Any], max_steps: int) -> bool:
    """Whether a checkpoint is of a training whose steps are all done and judged."""
    step, callbacks = checkpoint.get("global_step"), checkpoint.get("callbacks")
    if type(step) is not int or step < 0 or not isinstance(callbacks, dict):
        raise ProtosegError(f"resume: expected a checkpoint with the number of its steps, got {str(step)[:40]!r}")
    restart = callbacks.get("Restart")
    due = isinstance(restart, dict) and restart.get("validation_due") is True
    return step >= max_steps > 0 and not due


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values by their keys, ``optimizer.lr``, as they are written on the command line, or nearly so."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        words = {"None": "null", "True": "true", "False": "false", "{}": "null"}
        yield prefix, node if isinstance(node, str) else words.get(text := repr(node), text)


def _short(text: str) -> str:
    return (text if text.isprintable() else repr(text))[:80]


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
            raise ProtosegError(f"expected resume={resume} or overwrite=true in {folder}, got both: one erases its run")
        remove_run(folder)
    elif resume != "auto" and (resume is None or Path(resume).resolve().parent != (folder / "checkpoints").resolve()):
        text = f"{folder} holds a run already ({found}): go on with it by resume=auto"
        raise ProtosegError(f"{text}, choose another folder with hydra.run.dir=…, or remove it with overwrite=true")


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
