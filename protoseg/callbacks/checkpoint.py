"""Best and last checkpoint of a run that may go on, in another folder too, from a file that is not trusted."""

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.files import write_file
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the two functions of :mod:`protoseg.checkpoint`: whole files, and reading runs no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return TrainedFile(Path(path), read_checkpoint(path, map_location)).whole().content


class Checkpoint(ModelCheckpoint):
    """Lightning's, but a run resumed into a new folder keeps the best scores it had; see :func:`own_state`.

    Lightning forgets them, so that a run which has passed its peak would write a worse ``best``. Of several best ones
    (``save_top_k=3``) each is a file with its step, ``best-000250.ckpt``, and ``best.ckpt`` is a further name of the
    best of them, unless ``filename`` has fields of its own (``{step}``).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._best_name: str | None = None
        if self.monitor is not None and self.save_top_k not in (0, 1) and "{" not in (self.filename or "{"):
            self._best_name = f"{self.filename}{self.FILE_EXTENSION}"
            self.filename, self.auto_insert_metric_name = f"{self.filename}-{{step:06d}}", False

    @property
    def best_file(self) -> Path | None:
        """The best checkpoint; None where there is none in this run's folder."""
        path = Path(self.dirpath or "", self._best_name) if self._best_name else Path(self.best_model_path)
        return path if path.is_file() else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(own_state(self, state_dict))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if self._best_name and trainer.is_global_zero and Path(self.best_model_path).is_file():
            write_file(Path(self.dirpath or "", self._best_name), partial(_link, self.best_model_path))


def own_state(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint callback, its paths those of the run's own folder.

    Lightning deletes the files that a state names once there are better ones, and a checkpoint may be a stranger's. So
    of each path only a name that the callback itself would give is taken. A score counts without its file, too. Raises
    ProtosegError: scores that are no numbers.
    """
    folder = Path(callback.dirpath or "")
    pattern = re.sub(r"\\{.*?\\}", ".+", re.escape(callback.filename or "{epoch}-{step}"))

    def own(path: object, number: int = 0) -> str:
        name = os.path.basename(str(path))
        named_so = re.fullmatch(rf"{pattern}(-v\d+)?\.ckpt", name)
        return str(folder / (name if named_so else f".earlier-{number}.ckpt"))

    scores = {own(path, i): _score(score) for i, (path, score) in enumerate(state["best_k_models"].items())}
    ranked = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
    kept = ranked if callback.save_top_k == -1 else ranked[: callback.save_top_k]
    best = kept[0] if kept else own(state["best_model_path"])
    full = bool(kept) and len(kept) == callback.save_top_k
    return {
        "dirpath": callback.dirpath,
        "best_k_models": {path: score for path, score in scores.items() if path in kept},
        "best_model_path": best if Path(best).is_file() else "",
        "best_model_score": scores[kept[0]] if kept else None,
        **({"kth_best_model_path": kept[-1], "kth_value": scores[kept[-1]]} if full else {}),
    }


def _score(score: object) -> torch.Tensor:
    if isinstance(score, (int, float, torch.Tensor)):
        value = torch.as_tensor(score)
        if value.numel() == 1 and not value.is_complex() and not value.isnan().any():
            return value
    raise ProtosegError(f"checkpoint: expected scores of its best models that are numbers, got {str(score)[:40]!r}")


def _link(target: str, name: Path) -> None:
    name.unlink(missing_ok=True)  # of a process that was killed: a copy would write into the checkpoint it names
    try:
        os.link(target, name)
    except OSError:  # a disk without hard links
        shutil.copyfile(target, name)
