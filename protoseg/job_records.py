"""What a sweep's folder says of its jobs: each ``job.json`` the state of one; ``manifest.json`` the plan, and copies.

Nobody writes a job's but the job: jobs may run at the same time on many machines.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from protoseg.files import write_json
from protoseg.text import number_in
from protoseg.types import ProtosegError, told

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

log = logging.getLogger(__name__)

_COLUMNS = ("job", "state", "mIoU", "seconds", "error", "metric", "mean", "std", "n", "jobs", "each")


@dataclass(frozen=True)
class Job:
    """One training of a sweep."""

    number: int  # its place in the sweep, from 0
    overrides: tuple[str, ...]  # ``KEY=VALUE`` of the command line
    folder: Path
    state: str = "waiting"  # running (one that was killed, too), stopped, failed, done
    score: float = math.nan  # best validation mIoU, NaN until it is done
    seconds: float = 0.0  # spent in it so far, without attempts that were killed
    error: str = ""  # the message, where it failed
    wandb_id: str = ""  # of its run on the dashboard

    @property
    def values(self) -> dict[str, str]:
        """Value of each override; a key without one (``~KEY``) has an empty value."""
        return {key: value for key, _, value in (override.partition("=") for override in self.overrides)}


@dataclass(frozen=True)
class Sweep:
    """A multirun."""

    folder: Path
    arguments: tuple[str, ...]  # its overrides as given, ``seed=0,1,2``
    swept: tuple[str, ...]  # the keys that have more than one value
    planned: bool  # all jobs are known beforehand; not so in a search that goes by the scores
    jobs: tuple[Job, ...]  # those known, by number

    def name(self, job: Job) -> str:
        """What tells the job from the others: ``num_prototypes=5 seed=1``."""
        names, values = short_names(self.swept), job.values
        parts = [f"{names[key]}={short_value(values[key])}" for key in self.swept if key in values]
        return " ".join(parts) or f"job {job.number}"


def short_names(keys: tuple[str, ...]) -> dict[str, str]:
    """The last part of each key; or all of it where two end alike, or as another column of a sweep's tables."""
    last = [*_COLUMNS, *(key.rpartition(".")[2].lstrip("+") for key in keys)]
    return {key: key if last.count(name) > 1 else name for key, name in zip(keys, last[len(_COLUMNS) :], strict=True)}


def short_value(value: str) -> str:
    """The value to read: of a long decimal number four digits."""
    number = number_in(value) if len(value) > 8 else None
    return value if number is None else f"{number:.4g}"


def settings(overrides: Sequence[str]) -> list[str]:
    """The overrides without those that say only where a job runs: a sweep may be continued elsewhere."""
    return [override for override in overrides if not override.startswith("launcher=")]


def write_job(job: Job) -> None:
    """Write the job's ``job.json``."""
    write_json(job.folder / "job.json", _plain(job))


def read_job(folder: Path) -> Job | None:
    """The job that ran in a folder, None where none did; raises ProtosegError for a damaged file."""
    file = folder / "job.json"
    if not file.is_file():
        return None
    with _content(file) as content:
        return _job(content, folder)


def write_manifest(sweep: Sweep) -> None:
    """Write the sweep's ``manifest.json``."""
    jobs = [{**_plain(job), "folder": str(job.folder.relative_to(sweep.folder))} for job in sweep.jobs]
    content = {"arguments": sweep.arguments, "swept": sweep.swept, "planned": sweep.planned, "jobs": jobs}
    write_json(sweep.folder / "manifest.json", content)


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder, its jobs as their own files tell; raises ProtosegError without one, or if damaged."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise ProtosegError(f"no sweep in {folder}: expected the manifest.json that train.py -m writes there")
    with _content(file) as content:
        planned = [_job(entry, folder / entry["folder"]) for entry in content["jobs"]]
        frame = Sweep(folder, tuple(content["arguments"]), tuple(content["swept"]), bool(content["planned"]), ())
    if frame.planned:
        jobs = [read_job(job.folder) or replace(job, state="waiting") for job in planned]
    else:
        jobs = [job for path in folder.glob("*/job.json") if (job := read_job(path.parent))]
    return replace(frame, jobs=tuple(sorted(jobs, key=lambda job: job.number)))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder until this process ends; ProtosegError: another process trains there, or it cannot be written."""
    with told(lambda error: f"cannot write {folder}: {error}; choose another folder", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "job.lock", "w")  # noqa: SIM115 - closed below
    with file:
        try:
            # Not flock: forked workers would hold that on, for some seconds after the process itself was killed.
            if "fcntl" in globals():
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except (BlockingIOError, PermissionError) as error:
            text = f"{folder}: another process is training there; wait for it, end it, or choose another folder"
            raise ProtosegError(f"{text}: hydra.run.dir=…, of a sweep hydra.sweep.dir=…") from error
        except OSError as error:
            log.warning("no file locks on this disk (%s): do not train twice in one folder at the same time", error)
        yield


def _plain(job: Job) -> dict[str, Any]:
    """What of a job is the same wherever its folder lies, as JSON has it."""
    return {name: value for name, value in asdict(job).items() if name != "folder"}


def _job(entry: Any, folder: Path) -> Job:
    known = {field.name: entry[field.name] for field in fields(Job) if field.name != "folder"}
    known["score"] = math.nan if known["score"] is None else float(known["score"])
    return Job(**known | {"overrides": tuple(known["overrides"]), "folder": folder})


@contextmanager
def _content(path: Path) -> Iterator[Any]:
    """What a file of ours says, to be read in the block; ProtosegError where it, or a part of it, is not there."""
    text = f"{path} is damaged: expected what train.py -m writes; delete it to begin anew"
    with told(lambda _: text, KeyError, TypeError, ValueError):
        yield json.loads(path.read_text(encoding="utf-8"))
