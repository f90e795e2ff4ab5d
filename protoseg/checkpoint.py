"""Checkpoints: written atomically, read without running code, and never trusted with what they ask to build."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from protoseg.files import write_file
from protoseg.models.build import build_model
from protoseg.models.segmentor import Segmentor
from protoseg.types import LabelSpace, ProtosegError

TRUSTED = (
    "protoseg",
    "torch",
    "timm",
    "segmentation_models_pytorch",
    "torchmetrics",
    "pytorch_lightning",
    "albumentations",
)
"""Packages whose classes a checkpoint's config may name."""

BUILDABLE = (
    nn.Module,
    Optimizer,
    LRScheduler,
    Metric,
    pl.Trainer,
    pl.Callback,
    pl.LightningDataModule,
    Logger,
    Strategy,
)
"""What such a class must be: torch alone has classes that compile or launch programs when built."""


NETWORKS = {"student": "model.", "teacher": "teacher.module."}
BUILT = ("encoder", "decoder", "segmentor", "head", "auxiliary")
"""Sections of the trained config that make the model."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """A killed run or a full disk leaves the old checkpoint whole; reading cannot run code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to ``path``; raises as :func:`protoseg.files.write_file` does."""

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
        apply_to_collection(checkpoint, torch.Tensor, lambda tensor: sizes.append(tensor.nbytes))
        write_file(Path(path), save, sum(sizes))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(path, map_location)


def read_checkpoint(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint with ``weights_only=True``: a file from a stranger cannot run code.

    With ``mmap`` tensors are read from the disk only where they are used: for a look at the plain values.

    Raises:
        ProtosegError: no such file, not a checkpoint, or not one of this package.
    """
    checkpoint = read_tensors(path, map_location, mmap)
    own = checkpoint.get("protoseg")
    if not isinstance(own, dict) or not {"config", "label_space"} <= own.keys() or "state_dict" not in checkpoint:
        raise ProtosegError(f"checkpoint {path}: expected one written by protoseg's train.py, got another file")
    return checkpoint


def read_tensors(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """A dictionary of tensors and plain values, read as :func:`read_checkpoint` does; also for what is raised."""
    if not Path(path).is_file():
        raise ProtosegError(f"checkpoint: no file at {path}; give ckpt_path=RUN/checkpoints/best.ckpt")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # on bytes that are no checkpoint, the unpickler raises whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProtosegError(
            f"checkpoint {path}: not readable as tensors and plain values ({reason}); "
            "it is damaged, or holds pickled code, which is refused"
        ) from error
    return content if isinstance(content, dict) else {}


def checkpoint_config(path: str | Path, checkpoint: dict[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """The sections of the config inside a checkpoint that are to be built, checked by :func:`check_targets`.

    Raises:
        ProtosegError: there is no config, or it asks for what is not allowed.
    """
    config = checkpoint["protoseg"]["config"]
    if not isinstance(config, dict):
        raise ProtosegError(f"checkpoint {path}: expected the run's config inside, got none; train with train.py")
    chosen = {name: config.get(name) for name in sections}
    check_targets(chosen)
    return chosen


def checkpoint_label_space(checkpoint: dict[str, Any]) -> LabelSpace:
    """The classes that a checkpoint's model was trained for."""
    space = checkpoint["protoseg"]["label_space"]
    colors = tuple((int(r), int(g), int(b)) for r, g, b in space["colors"])
    return LabelSpace(str(space["name"]), tuple(map(str, space["classes"])), colors)


def load_model(trained: DictConfig, checkpoint: dict, label_space: LabelSpace, network: str = "student") -> Segmentor:
    """The model of a checkpoint, with its weights and prototypes, in eval mode.

    Args:
        trained: the config inside the checkpoint.
        checkpoint: see :func:`protoseg.checkpoint.read_checkpoint`.
        label_space: its classes.
        network: ``student`` (what supervised training makes, too) or ``teacher``.

    Raises:
        ProtosegError: no such network in it, or weights that do not fit the config inside the checkpoint.
    """
    if network not in NETWORKS:
        raise ProtosegError(f"network: expected one of {', '.join(NETWORKS)}, got {network!r}")
    model = build_model(trained, label_space.num_classes, pretrained=False)
    prefix = NETWORKS[network]
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if not weights:
        raise ProtosegError(f"network: expected a checkpoint with a {network}, got one without; use network=student")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ProtosegError(f"checkpoint: the weights do not fit its config: {' '.join(str(error).split())}") from error
    return model.eval()


def check_same_classes(path: str | Path, trained: LabelSpace, data: LabelSpace) -> None:
    """A model can only go on with, or be judged on, the classes it was trained for.

    Raises:
        ProtosegError: the data has others.
    """
    if trained.classes != data.classes:
        raise ProtosegError(
            f"the checkpoint {path} was trained on {_classes(trained)}, the data has {_classes(data)}; choose the data "
            "that it was trained on, or predict without labels: evaluate.py mode=predict"
        )


def _classes(space: LabelSpace) -> str:
    return f"{space.num_classes} classes ({space.name}: {', '.join(space.classes[:4])}, …)"


def check_targets(config: Any) -> None:
    """Refuse a config from a checkpoint that names anything but classes of :data:`TRUSTED` packages.

    A prefix alone is no guard (``torch.os.system``, ``torch.hub.load``), so every ``_target_`` is resolved and must
    be a class, or a function of this package, that was defined in a trusted package. Interpolations are refused
    too: they could read the environment.

    Raises:
        ProtosegError: names the first offender.
    """
    for key, value in _leaves(config):
        name = key.rpartition(".")[2]
        if isinstance(value, str) and "${" in value:
            raise ProtosegError(f"checkpoint config {key}: interpolation {value!r} is not allowed in a checkpoint")
        if name == "_target_" and not _is_trusted(str(value)):
            raise ProtosegError(
                f"checkpoint config {key}: {value!r} is not allowed; expected a class of {', '.join(TRUSTED)}. "
                "Do not use a stranger's checkpoint that asks for anything else; if it is your own data set, choose it "
                "on the command line with data=NAME"
            )


def _is_trusted(target: str) -> bool:
    if target.partition(".")[0] not in TRUSTED:
        return False
    module_name, _, attribute = target.rpartition(".")
    try:
        value = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError):
        return False
    home = str(getattr(value, "__module__", "")).partition(".")[0]
    if home in ("protoseg", "albumentations"):
        return home == "protoseg" or isinstance(value, type)
    return home in TRUSTED and isinstance(value, type) and issubclass(value, BUILDABLE)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{prefix}.{index}")
    else:
        yield prefix, node
