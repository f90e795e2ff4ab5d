"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from protoseg.types import ProtosegError

_PARTIAL = ".partial"
_LONGEST = 255  # bytes of a file's name, on all common disks


def with_ending(path: Path, ending: str) -> Path:
    """The path with ``ending`` after its name. Of a name too long for a disk the rest is replaced by a hash of it."""
    name = os.fsencode(path.name)
    room = _LONGEST - len(os.fsencode(ending))
    if len(name) <= room:
        return path.with_name(path.name + ending)
    short = f"{name[: room - 9].decode(errors='ignore')}~{sha256(name).hexdigest()[:8]}"
    return path.with_name(short + ending)


def remove_partial_files(folder: Path) -> None:
    """Remove what :func:`write_file` has left half-written in ``folder`` where it was killed."""
    for partial in folder.glob(f".*{_PARTIAL}*"):
        partial.unlink(missing_ok=True)


def write_file(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a file beside ``path``, then put it in place.

    A killed run or a full disk leaves an earlier file whole.

    Raises:
        ProtosegError: the disk refuses; an earlier file at ``path`` is untouched.
    """
    # The suffix stays last: NumPy and matplotlib go by it.
    partial = with_ending(path.with_name(f".{path.stem}"), f".{os.getpid()}{_PARTIAL}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ProtosegError(
            f"cannot write {path}: {error}. What was written before is kept; free space or choose another folder"
        ) from error
