"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from protoseg.types import ProtosegError

_PARTIAL = ".partial"


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
    partial = path.with_name(f".{path.stem}.{os.getpid()}{_PARTIAL}{path.suffix}")
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
