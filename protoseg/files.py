"""Files that are whole or not there: written beside their place, then renamed."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from protoseg.types import ProtosegError, told

_PARTIAL = ".partial"
_LONGEST = 255  # bytes of a file's name, on all common disks


def existing_checkpoint(path: str | Path) -> None:
    """Raise ProtosegError where no file is at ``path``: the look that a command line may take before torch is there."""
    if not os.path.isfile(path):
        raise ProtosegError(f"checkpoint: no file at {path}; give one as RUN/checkpoints/best.ckpt")


def with_ending(path: Path, ending: str) -> Path:
    """The path with ``ending`` after its name. Of a name too long for a disk the rest is replaced by a hash of it."""
    name = os.fsencode(path.name)
    room = _LONGEST - len(os.fsencode(ending))
    if len(name) <= room:
        return path.with_name(path.name + ending)
    return path.with_name(f"{name[: room - 9].decode(errors='ignore')}~{sha256(name).hexdigest()[:8]}" + ending)


def remove_partial_files(folder: Path) -> None:
    """Remove what :func:`write_file` has left half-written in ``folder`` where it was killed."""
    for partial in folder.glob(f".*{_PARTIAL}*"):
        partial.unlink(missing_ok=True)


def disk_refusal(error: OSError, place: Path, wanted: int = 0) -> str:
    """Why a file or folder cannot be written at ``place``; of a full disk what is free, and ``wanted`` (bytes)."""
    reason = (error.strerror or str(error)).strip()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((parent for parent in place.absolute().parents if parent.is_dir()), Path.cwd())
        free = shutil.disk_usage(folder).free / 1e6
        reason += f" ({wanted / 1e6:.1f} MB wanted, {free:.1f} MB free)" if wanted else f" ({free:.1f} MB free)"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason += " (the folder is read-only, or another user's)"
    return f"cannot write {place}: {reason}"


def write_file(path: Path, save: Callable[[Path], object], size: int = 0) -> None:
    """Let ``save`` write a file beside ``path``, at the path that it is given, then put it in place; makes the folder.

    A killed run or a full disk leaves an earlier file whole. ``size``: bytes that the file will have, for the message,
    0 if unknown. Raises ProtosegError: the disk refuses.
    """
    # The suffix stays last: NumPy and matplotlib go by it.
    partial = with_ending(path.with_name(f".{path.stem}"), f".{os.getpid()}{_PARTIAL}{path.suffix}")
    more = "What was written before is kept; free space or choose another folder"
    with told(lambda error: f"{disk_refusal(error, path, size)}. {more}", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """:func:`write_file` of a text in UTF-8; bytes of a name that are no UTF-8 are escaped."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON; NaN becomes null."""
    write_text(path, json.dumps(without_nan(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def without_nan(value: Any) -> Any:
    """The same value with None for NaN: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
