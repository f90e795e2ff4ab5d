"""Pickles and archives made by hand, to keep a reader for ever, to end it, or to show torch what was not looked at."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protoseg.archive import read_archive
from protoseg.types import ProtosegError


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def copies(kind: bytes, of: bytes) -> bytes:
    """5000 calls of ``kind`` with one large value."""
    return b"](" + of + b"q\x00" + kind + b"q\x01" + b"h\x01h\x00\x85R" * 5000 + b"e"


LARGE = b"}(" + b"".join(number(i) + b"N" for i in range(100_000)) + b"u"
TENSOR = named("torch._utils", "_rebuild_tensor_v2")
STORAGE = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + number(4) + b"tQ"
DOUBLED = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"N" for i in range(28))

PICKLES = {
    "a key of nested tuples, which overflows the stack": b"}" + text("x") + b"\x85" * 200_000 + b"Ns",
    "keys that are hashed for ever": b"}(" + text("x") + b"q\x00N" + DOUBLED + b"u",
    "keys of one hash": b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 60_000)) + b"u",
    "pairs of one hash": named("collections", "OrderedDict")
    + b"(]("
    + b"".join(b"(" + number(i * (2**61 - 1)) + b"Nt" for i in range(1, 60_000))
    + b"etR",
    "copies of a dictionary": copies(named("collections", "OrderedDict"), LARGE),
    "copies of a list as sizes": copies(named("torch", "Size"), LARGE),
    "tensors of many dimensions": b"]("
    + (b"(" + b"K\x00" * 100_000 + b"tq\x00" + STORAGE + b"q\x02" + TENSOR + b"q\x01")
    + b"h\x01(h\x02K\x00h\x00h\x00\x89NtR" * 5000
    + b"e",
    "millions of instructions": b"]" * 8_000_000,
    "an attribute that hides a method": named("collections", "OrderedDict") + b")R}" + text("items") + b"K\x01sb",
}


def archive(path: Path, pickled: bytes, **more: bytes) -> bytes:
    """Write an archive as ``torch.save`` does, with one tensor's bytes."""
    parts = {"data.pkl": pickled} | more
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(f"archive/{name}", b"\x80\x02" + content + b".")
        file.writestr("archive/version", "3")
        file.writestr("archive/data/0", bytes(16))
    return path.read_bytes()


def two_directories(path: Path) -> None:
    """To ``zipfile`` it holds None; to torch, which takes the place that is written at the end, a text."""
    other, harmless = archive(path, text("other")), archive(path, b"N")
    end = bytearray(harmless[harmless.rfind(b"PK\5\6") :])
    end[16:20] = struct.pack("<I", other.find(b"PK\1\2"))
    path.write_bytes(other[: other.rfind(b"PK\5\6")] + harmless[: harmless.rfind(b"PK\5\6")] + end)


def older_format_before(path: Path) -> None:
    old = io.BytesIO()
    torch.save("other", old, _use_new_zipfile_serialization=False)
    path.write_bytes(old.getvalue() + archive(path, b"N"))


def of_another_case(path: Path) -> None:
    archive(path, b"N", **{"DATA.PKL": text("other")})


def test_plain_values_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    archive(path, b"}" + text("a") + number(5) + b"s")
    assert read_archive(path) == {"a": 5}
    torch.save({"state": {0: torch.arange(3)}, "size": torch.Size([2, 3])}, path)
    assert read_archive(path)["state"][0].tolist() == [0, 1, 2]


# In a process of its own, for the stack of one that is wrong overflows.
def test_pickles_that_would_never_end(tmp_path: Path) -> None:
    for number_, pickled in enumerate(PICKLES.values()):
        archive(tmp_path / f"{number_}.ckpt", pickled)
    code = (
        "import sys, time\nfrom protoseg.archive import read_archive\nfrom protoseg.types import ProtosegError\n"
        "for path in sys.argv[1:]:\n    started = time.process_time()\n    try:\n        read_archive(path)\n"
        "    except ProtosegError:\n        print(time.process_time() - started, flush=True)"
    )
    files = [str(tmp_path / f"{i}.ckpt") for i in range(len(PICKLES))]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=60)
    seconds = dict(zip(PICKLES, map(float, done.stdout.split()), strict=False))
    assert len(seconds) == len(PICKLES), (seconds, done)
    assert max(seconds.values()) < 5, seconds


@pytest.mark.parametrize("make", [two_directories, older_format_before, of_another_case])
def test_torch_sees_the_parts_that_were_looked_at(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    make(path)
    with pytest.raises(ProtosegError, match=r"not as torch\.save writes it|two have one name"):
        read_archive(path)
