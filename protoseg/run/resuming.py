"""What a run goes on from, and which of its settings may change meanwhile."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, open_dict

from protoseg.types import ProtosegError

SAID, SILENT = "said", "silent"
RULES: list[tuple[str, str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
"""Patterns of keys, first match first, and what becomes of a change; :data:`SAID`, :data:`SILENT`, or why it is not."""


def checkpoint_to_resume(resume: str | None, last: Path) -> str | None:
    """``resume``; or, where it is ``auto`` or a scheduler has restarted this run, ``last`` if there is such a file."""
    if last.is_file() and (resume == "auto" or restarted()):
        return str(last)
    if resume != "auto":
        return resume
    others = checkpoints_in(last.parent)
    if others and not restarted():
        raise ProtosegError(
            f"resume=auto: expected {last}, got no such file, but {', '.join(path.name for path in others)} beside it; "
            f"go on from one of them with resume={others[0]}, or start anew with overwrite=true and without resume"
        )
    return None


def restarted() -> bool:
    """Whether SLURM or torchrun has started this run before."""
    counts = (os.environ.get(name) or "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(int(count) for count in counts)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints that are whole, by name."""
    return sorted(path for path in folder.glob("*.ckpt") if not path.name.startswith("."))


def changed_settings(path: str, checkpoint: dict[str, Any], config: dict[str, Any], only: Sequence[str] = ()) -> str:
    """Settings that were others when the checkpoint was written: ``optimizer.lr 0.002 -> 0.001, …``; often none.

    With ``only``, of these sections, without where an encoder's first weights came from. ProtosegError where a change
    cannot be taken over. The checkpoint may be a stranger's: its config is compared and printed, and nothing else.
    """
    before = checkpoint["protoseg"]["config"]
    if not isinstance(before, dict):
        raise ProtosegError(f"resume: checkpoint {path}: expected the run's config inside, got none")
    try:
        now, old = dict(_leaves(config)), dict(_leaves(before))
        # What follows from the folder is no change where only the folder changed.
        folder, to = old.get("paths.output", ""), now["paths.output"]
        moved = (key for key, value in old.items() if folder and value.startswith(folder))
        old |= {key: to + old[key].removeprefix(folder) for key in moved}
    except RecursionError as error:
        raise ProtosegError(f"resume: checkpoint {path}: its config is nested too deeply") from error
    said, refused = [], []
    for key in dict.fromkeys([*now, *old]):
        was, is_now = old.get(key, "null"), now.get(key, "null")
        passed = only and (key.partition(".")[0] not in only or key in ("encoder.pretrained", "encoder.weights"))
        if was == is_now or passed or (rule := rule_of(key)) == SILENT:
            continue
        change = f"{_short(key)} {_short(was)} -> {_short(is_now)}"
        said.append(change) if rule == SAID else refused.append(f"{change} ({rule})")
    if refused:
        more = f", and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise ProtosegError(
            f"resume={path}: expected the settings of the run that it goes on with, got others that cannot change: "
            f"{', '.join(refused[:8])}{more}. Set them back, or start a new run"
        )
    return ", ".join(said)


def take_input(cfg: DictConfig, checkpoint: dict[str, Any]) -> None:
    """Normalise images as the network of a checkpoint does, where ``cfg`` leaves that to the encoder."""
    from protoseg.trusted import checked_sections  # torch, which no help waits for

    said = checked_sections(checkpoint["protoseg"]["config"] or {}, ["encoder"])["encoder"] or {}
    with open_dict(cfg.encoder):
        for key in ("mean", "std"):
            cfg.encoder[key] = cfg.encoder.get(key) or said.get(key)


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
