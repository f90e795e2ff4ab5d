"""Checkpoints: written atomically, read without running code, and never trusted with what they ask to build."""

import os
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from protoseg import __version__
from protoseg.archive import read_archive
from protoseg.files import existing_checkpoint, write_file
from protoseg.types import MAX_CLASSES, MAX_NAME, LabelSpace, ProtosegError, told

NETWORKS = {"student": "model.", "teacher": "teacher.module."}  # what the names of a network's weights begin with


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """A killed run or a full disk leaves the old checkpoint whole; raises as :func:`protoseg.files.write_file` does."""

    def save(partial: Path) -> None:
        try:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch's own writer trips over the half-written file and hides the reason
            refusal = error.__context__
            raise (refusal if isinstance(refusal, OSError) else OSError(str(error))) from None

    sizes: list[int] = []
    apply_to_collection(checkpoint, Tensor, lambda tensor: sizes.append(tensor.nbytes))
    write_file(Path(path), save, sum(sizes))


def read_checkpoint(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of this package, read by :func:`protoseg.archive.read_archive`, every part of its proper form.

    With ``mmap``, for a look at the plain values, NaN among the tensors is not noticed. Raises ProtosegError: no such
    file, not a checkpoint, not one of this package, or one with parts of another form.
    """
    checkpoint = read_tensors(path, map_location, mmap)
    own = checkpoint.get("protoseg")
    if not isinstance(own, dict) or not {"config", "label_space"} <= own.keys() or "state_dict" not in checkpoint:
        raise ProtosegError(f"checkpoint {path}: expected one written by protoseg's train.py, got another file")
    with told(lambda error: f"checkpoint {path}: {error}", ProtosegError):
        check_class_names(own)
        _check_state(checkpoint["state_dict"], 2 * Path(path).stat().st_size, values=not mmap)
    return checkpoint


def read_tensors(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """A dictionary of tensors and plain values; raises ProtosegError for a file that is not there or not to be read."""
    existing_checkpoint(path)
    with told(lambda error: f"checkpoint {error}", ProtosegError):
        content = read_archive(path, map_location, mmap)
    return content if isinstance(content, dict) else {}


def own_part(config: dict[str, Any] | None, space: LabelSpace) -> dict[str, Any]:
    """What a checkpoint holds under ``protoseg``: the run's resolved config, and the classes."""
    colors = [list(color) for color in space.colors]
    label_space = {"name": space.name, "classes": list(space.classes), "colors": colors, "parents": list(space.parents)}
    return {"version": __version__, "config": config, "label_space": label_space}


def checkpoint_label_space(checkpoint: dict[str, Any]) -> LabelSpace:
    """The classes that a checkpoint's model was trained for; raises ProtosegError where they are not in order."""
    space, keys = checkpoint["protoseg"]["label_space"], ("name", "classes", "colors")
    if not isinstance(space, dict) or any(key not in space for key in keys):
        raise ProtosegError(f"label space: expected {', '.join(keys)}, got {_kind(space)}")
    name, classes, colors = (space[key] for key in keys)
    if not isinstance(classes, (list, tuple)) or not 0 < len(classes) <= MAX_CLASSES:
        raise ProtosegError(f"label space: expected 1 to {MAX_CLASSES} classes, got {_kind(classes)}")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_NAME for each in (name, *classes)):
        raise ProtosegError(f"label space: expected names of at most {MAX_NAME} letters, got others")
    if len(set(classes)) < len(classes):
        raise ProtosegError("label space: expected every class once, got one twice")
    listed = isinstance(colors, (list, tuple)) and all(isinstance(color, (list, tuple)) for color in colors)
    if not listed or not all(len(c) == 3 and all(type(n) is int and 0 <= n <= 255 for n in c) for c in colors):
        raise ProtosegError("label space: expected colours of three numbers from 0 to 255, got others")
    parents = space.get("parents", [])
    if not isinstance(parents, (list, tuple)) or not all(type(parent) is int for parent in parents):
        raise ProtosegError("label space: expected parents as whole numbers, got others")
    return LabelSpace(name, tuple(classes), tuple((r, g, b) for r, g, b in colors), parents=tuple(parents))


def check_class_names(own: dict[str, Any]) -> None:
    """Raise ProtosegError unless all that names classes in ``checkpoint["protoseg"]`` is what it should be.

    The label space; how labels are read since a change of classes; subsets to report; sections that are looked into.
    """
    space, config = checkpoint_label_space({"protoseg": own}), own["config"]
    if not isinstance(config, (dict, NoneType)):  # None: of a module that was built by hand
        raise ProtosegError(f"config: expected sections, got {_kind(config)}")
    head, data, method = ((config or {}).get(name) or {} for name in ("head", "data", "method"))
    if not all(isinstance(section, dict) for section in (head, data, method)):
        raise ProtosegError("config: expected head, data and method to be sections, got values")
    sections = [data]  # and, as the loop finds them, those of the data sets that it is put together from
    for section in sections:
        sections += [value for name, value in section.items() if isinstance(value, dict) and name != "relabel"]
    for relabel in [section.get("relabel") for section in (own, *sections)]:
        good = isinstance(relabel, (dict, NoneType))
        pairs = (relabel or {}).items() if good else ()
        if not good or not all(isinstance(old, str) and isinstance(new, (str, NoneType)) for old, new in pairs):
            raise ProtosegError("relabel: expected {class: class or null}, got something else")
    subsets = method.get("subsets") or {}
    chosen = subsets.values() if isinstance(subsets, dict) else [None]
    if not all(isinstance(names, (list, tuple)) and all(name in space.classes for name in names) for names in chosen):
        raise ProtosegError("config method.subsets: expected {name: [class, …]}, got something else")


def _check_state(state: Any, limit: int, values: bool) -> None:
    """Named, dense, real tensors of at most ``limit`` bytes together; with ``values``, of finite numbers."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ProtosegError(f"state_dict: expected named tensors, got {_kind(state)}")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_complex():
            raise ProtosegError(f"state_dict: expected tensors of real numbers, got another value at {name[:80]!r}")
    if sum(tensor.nbytes for tensor in state.values()) > limit:
        raise ProtosegError("state_dict: expected no more numbers than the file holds, got tensors that share them")
    for name, tensor in state.items() if values else ():
        if not torch.isfinite(tensor).all():
            got = f"NaN or infinity in {name[:80]!r}: the training had failed before it was saved"
            raise ProtosegError(f"state_dict: expected finite numbers, got {got}; use an earlier checkpoint")


def _kind(value: object) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def check_same_classes(path: str | Path, trained: LabelSpace, data: LabelSpace) -> None:
    """Raise ProtosegError unless the data has the classes that a model was trained for."""
    if trained.classes != data.classes:
        at = next(i for i in range(len(trained.classes) + 1) if trained.classes[i : i + 1] != data.classes[i : i + 1])
        spaces = (trained, data)  # of each is shown where it begins to differ
        one, other = (f"{s.num_classes} classes ({s.name}: {', '.join(s.classes[at:][:4])}, …)" for s in spaces)
        remedy = "choose the data that it was trained on, or predict without labels: evaluate.py mode=predict"
        raise ProtosegError(f"the checkpoint {path} was trained on {one}, the data has {other}; {remedy}")
