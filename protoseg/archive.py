"""Files of tensors, as ``torch.save`` writes them: looked through before anything that they hold is made.

``torch.load(weights_only=True)`` runs no code of a file, but believes what it declares: compressed parts that grow, a
tensor larger than its bytes, a call that fills the memory. So the pickle inside is first read by a reader of our own,
which makes no tensor and knows five names.
"""

import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from protoseg.types import first_line, told, yaml_beside

MAX_NODES = 1_000_000
"""Values in a file; a training of HRNet-W48 keeps 40 000. Lists that hold one another many times count each time."""
MAX_DEPTH = 100
MAX_PICKLE = 8 << 20  # bytes of plain values; a training of HRNet-W48 with a teacher keeps 1 MB
MAX_READS = 1_500_000  # instructions of a pickle, and their numbers and texts; that training needs 500 000
MAX_DIMENSIONS = 64

_TABLES = yaml_beside(__file__, "archive.yaml")
_STORAGES = {name: getattr(torch, dtype) for name, dtype in _TABLES["storages"].items()}

_ZIP_START = b"PK\3\4"
# The end of a ZIP file: of the record of a large one its mark and the place of the list of parts; of its locator the
# mark and the place of the record; of the record of all files the mark and the place of the list. No comment.
_ZIP_TAIL = struct.Struct("<4s44xQ4s4xQ4x4s12xI2x")


class _Storage(NamedTuple):
    """Numbers of a tensor: the name of their part of the archive, how many, and of which kind."""

    key: str
    numel: int
    dtype: torch.dtype


class Unread(NamedTuple):
    """What a file says of a tensor."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _size(numbers: Any) -> tuple[int, ...]:
    """Not a copy of any list: the next one could be a copy of that, and so on."""
    if type(numbers) is not tuple or len(numbers) > MAX_DIMENSIONS or not {type(n) for n in numbers} <= {int}:
        raise pickle.UnpicklingError("a tensor has no proper shape")
    return numbers


class _Instructions(io.BytesIO):
    """A pickle that ends after so many reads: a few megabytes of one-byte instructions would keep us for long."""

    left = MAX_READS

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it holds more than {MAX_READS} instructions")
        return super().read(size)


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, stride, *rest: Unread(
        storage, offset, _size(shape), _size(stride)
    ),
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("collections", "OrderedDict"): lambda: OrderedDict(),  # what it holds comes after; not a copy, either
    ("torch", "Size"): _size,
    ("torch", "device"): lambda *name: None,
} | {("torch", name): name for name in _STORAGES}


class _Look(pickle._Unpickler):  # type: ignore[name-defined]
    """Reads a pickle and makes nothing but plain values and ``Unread``s; refuses any other name or instruction."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, numel = pid[:5]
        if kind != "storage" or storage not in _STORAGES or not isinstance(numel, int):
            raise pickle.UnpicklingError("it holds numbers of an unknown kind")
        return _Storage(str(key), numel, _STORAGES[storage])

    def load_build(self) -> None:
        stack = self.stack  # type: ignore[attr-defined]
        state = stack.pop()
        # torch's; any other attribute may hide a method, such as `items`.
        if not isinstance(stack[-1], OrderedDict) or not isinstance(state, dict) or {*state} - {"_metadata"}:
            raise pickle.UnpicklingError("it changes what it has made")

    def load_setitem(self) -> None:
        _check_keys([self.stack[-2]])  # type: ignore[attr-defined]
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_setitems()  # type: ignore[misc]

    dispatch = {  # noqa: RUF012  of the base class
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]  # type: ignore[attr-defined]
        for name in _TABLES["opcodes"].split()
    }
    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = load_setitem  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = load_setitems  # type: ignore[assignment]


def _check_keys(keys: list[Any]) -> None:
    """Texts and small numbers: hashing nested tuples takes for ever or overflows the stack, large numbers collide."""
    for key in keys:
        if type(key) is not str and not (type(key) is int and abs(key) < 1 << 32):
            raise pickle.UnpicklingError(f"it has keys that are no text and no small number ({type(key).__name__})")


def read_archive(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What ``torch.save`` wrote: tensors and plain values, checked before they are made; options as of ``torch.load``.

    Raises ProtosegError: no such archive; or it is damaged, compressed, holds code, or declares more than it holds.
    """
    with _readable(path):
        _check(Path(path))
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)


def _readable(path: str | Path) -> AbstractContextManager[None]:
    text, why = f"{path}: not readable as tensors and plain values", "it is damaged, or holds pickled code"
    # On bytes that are no archive, the readers raise whatever they stumble over.
    return told(lambda error: f"{text} ({first_line(error)}); {why}, which is refused", Exception)


class Foreign:
    """Stands for a value of a class that is not looked up: takes whatever a pickle puts into it, and keeps nothing."""

    def __new__(cls, *args: object, **keywords: object) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *args: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...


FOREIGN = ("numpy", "mmcv", "mmengine", "addict", "_codecs")
"""Packages whose values old training codes leave beside their tensors; nothing of them is imported."""


class _LookPast(_Look):
    """Reads on past values of ``FOREIGN`` classes, for which it puts a ``Foreign``."""

    def find_class(self, module: str, name: str) -> Any:
        return Foreign if module.split(".")[0] in FOREIGN else super().find_class(module, name)

    def load_build(self) -> None:
        if isinstance(self.stack[-2], Foreign):  # type: ignore[attr-defined]
            self.stack.pop()  # type: ignore[attr-defined]
        else:
            super().load_build()

    def load_newobj(self) -> None:
        if self.stack[-2] is not Foreign:  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it makes an object of another class")
        super().load_newobj()  # type: ignore[misc]

    dispatch = _Look.dispatch | {pickle.BUILD[0]: load_build, pickle.NEWOBJ[0]: load_newobj}  # type: ignore[dict-item, assignment]


@contextmanager
def read_foreign(path: str | Path) -> Iterator[tuple[Any, Callable[[Unread], Tensor]]]:
    """Values of a file of any training code, and what reads a tensor of it; in torch's format, or that before 1.6.

    Nothing of the file is run or imported, and only what is asked for is read. Each tensor is an ``Unread``; a value of
    a ``FOREIGN`` package a ``Foreign``, of which nothing is known. Raises ProtosegError: no file, damaged, or code.
    """
    with _readable(path), ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        if file.read(len(_ZIP_START)) == _ZIP_START:
            values, names = _check(Path(path), _LookPast)
            archive = stack.enter_context(zipfile.ZipFile(file))

            def raw(storage: _Storage) -> bytes:
                return archive.read(names[storage.key])
        else:
            values, places = _look_before_zip(file)

            def raw(storage: _Storage) -> bytes:
                file.seek(places[storage.key])
                return file.read(storage.numel * storage.dtype.itemsize)

        def tensor(unread: Unread) -> Tensor:
            storage, offset, shape, stride = unread
            if not storage.numel:
                return torch.empty(shape, dtype=storage.dtype)
            numbers = torch.frombuffer(bytearray(raw(storage)), dtype=storage.dtype, count=storage.numel)
            return numbers.as_strided(shape, stride, offset).clone()

        yield values, tensor


def _look_before_zip(file: BinaryIO) -> tuple[Any, dict[str, int]]:
    """Values of a file of torch before 1.6 (five pickles, then for each key a count and numbers); where these are."""
    file.seek(0)
    head = _Instructions(file.read(MAX_PICKLE))
    mark, version, _sizes, values, keys = (_LookPast(head).load() for _ in range(5))
    if mark != 0x1950A86A20F9469CFC6C or version != 1001 or not isinstance(keys, list):
        raise ValueError("it is not as torch.save writes it")
    kinds = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in _tensors(values)}
    place, end, places, sizes = head.tell(), file.seek(0, os.SEEK_END), {}, {}
    for key in keys:
        file.seek(place)
        numel = struct.unpack("<q", file.read(8))[0]
        if key not in kinds or not 0 <= numel * kinds[key] <= end - place - 8:
            raise ValueError("it is cut off, or its numbers are not where it says")
        places[key], sizes[key] = place + 8, numel * kinds[key]
        place += 8 + sizes[key]
    _check_tensors(values, sizes)
    return values, places


def _check(path: Path, reader: type[_Look] = _Look) -> tuple[Any, dict[str, str]]:
    """The values of an archive, tensors not read, and the name of its part for every key of a storage."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        _check_directory(file, archive.start_dir)
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed, and may grow: unpack it, and save it again with torch.save")
        size = {part.filename.lower(): part.file_size for part in parts}  # torch does not look at the case
        if len(size) < len(parts) or sum(size.values()) > path.stat().st_size:
            raise ValueError("its parts are larger than the file, or two have one name")
        names = [part.filename for part in parts if part.filename.lower().endswith("/data.pkl")]
        if len(names) != 1 or names[0].count("/") != 1:
            raise ValueError("it has no part data.pkl, or several")
        (name,) = names
        if size[name.lower()] > MAX_PICKLE:
            raise ValueError(f"its plain values take {size[name.lower()] / 1e6:.0f} MB")
        values = reader(_Instructions(archive.read(name))).load()
    root = f"{name.lower().removesuffix('data.pkl')}data/"
    _check_tensors(values, {part[len(root) :]: size[part] for part in size if part.startswith(root)})
    return values, {part.filename.lower()[len(root) :]: part.filename for part in parts}


def _check_tensors(values: Any, sizes: Mapping[str, int]) -> None:
    """See that every tensor has its bytes, by the key of its storage."""
    for storage, offset, shape, strides in _tensors(values):
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise ValueError("a tensor has no proper shape")
        count, there = math.prod(shape), sizes.get(storage.key, -1)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if storage.numel * storage.dtype.itemsize > there or count > storage.numel or (count and last >= storage.numel):
            raise ValueError(f"a tensor of {'x'.join(map(str, shape))} numbers has too few bytes")


def _check_directory(file: BinaryIO, found: int) -> None:
    """See that torch finds the same parts as ``zipfile``, in the list that begins at ``found``.

    Else a file could show the one harmless parts and the other others. ``zipfile`` takes the list that lies just before
    the end; torch that whose place is written there, or, of a file that begins otherwise, none: an older format.
    """
    head = file.seek(0) or file.read(len(_ZIP_START))
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _ZIP_TAIL.size))
    tail = file.read().rjust(_ZIP_TAIL.size, b"\0")
    record, place, locator, record_at, end, short_place = _ZIP_TAIL.unpack(tail)
    large = locator == b"PK\6\7"
    good = not large or (record == b"PK\6\6" and record_at == length - _ZIP_TAIL.size)
    if head != _ZIP_START or end != b"PK\5\6" or not good or (place if large else short_place) != found:
        raise ValueError("it is not as torch.save writes it")


def _tensors(value: Any) -> Iterator[Unread]:
    """All tensors among nested values; raises ValueError for too many or too deep ones."""
    todo, seen = [(value, 0)], 0
    while todo:
        node, depth = todo.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError(f"it holds more than {MAX_NODES} values, or nests them {MAX_DEPTH} deep")
        if isinstance(node, Unread):
            yield node
        elif isinstance(node, dict):
            todo += [(child, depth + 1) for pair in node.items() for child in pair]
        elif isinstance(node, (list, tuple, set)):
            todo += [(child, depth + 1) for child in node]
