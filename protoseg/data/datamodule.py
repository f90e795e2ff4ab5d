"""One DataModule for all data sets: training counted in steps and resumable, evaluation at full resolution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from rich.progress import track
from torch import Tensor

from protoseg import distributed
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.loading import Augmented, Loader
from protoseg.data.samplers import RankSampler, StepBatchSampler
from protoseg.data.transforms import TrainTransform
from protoseg.types import LabelSpace, ProtosegError

_PROGRESS_BAR_FROM = 500


class SegmentationDataModule(pl.LightningDataModule):
    """Loaders that give ``Batch``es. No file is looked at before ``setup`` or the first use of a split.

    Args:
        dataset: data set class, or a partial of it, called with ``split=`` (and ``root=`` if given).
        batch_size: training samples per step and process.
        val_batch_size: evaluation samples per batch; has no influence on any result.
        num_workers: loader processes; has no influence on any result.
        crop_size, scale, photometric, max_class_share: augmentation, see ``TrainTransform``.
        seed: base seed of the order and of the augmentation.
        train_split, val_split: names of the splits.
        root: folder of the data; None leaves it to ``dataset``.

    Raises:
        ProtosegError: values that make no sense; later, data that is missing or bad.
    """

    def __init__(
        self,
        dataset: Callable[..., SegmentationDataset],
        batch_size: int,
        crop_size: Sequence[int],
        val_batch_size: int = 1,
        num_workers: int = 2,
        scale: Sequence[float] = (0.5, 2.0),
        photometric: bool = True,
        max_class_share: float | None = None,
        seed: int = 0,
        train_split: str = "train",
        val_split: str = "val",
        root: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or val_batch_size < 1 or num_workers < 0 or seed < 0:
            raise ProtosegError(
                "expected batch_size and val_batch_size of at least 1, num_workers and seed of at least 0, got "
                f"{batch_size}, {val_batch_size}, {num_workers} and {seed}"
            )
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_split = train_split
        self.val_split = val_split
        self.transform = TrainTransform(crop_size, scale, photometric, max_class_share)
        self.label_space = _label_space(dataset)
        self._make = dataset if root is None else partial(dataset, root=root)
        self._datasets: dict[str, SegmentationDataset] = {}
        self._start = 0

    def dataset(self, split: str) -> SegmentationDataset:
        """The data set of ``split``, made at the first call; raises ProtosegError if its files are not in order."""
        if split not in self._datasets:
            self._datasets[split] = self._make(split=split)
        return self._datasets[split]

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.dataset(self.train_split)
        if stage in ("fit", "validate"):
            self.dataset(self.val_split)

    def train_dataloader(self) -> Loader:
        """One pass over this loader is the whole training: ``max_steps * accumulate_grad_batches`` batches.

        Raises:
            ProtosegError: the trainer does not count in steps, cuts the pass short or replaces the sampler.
        """
        dataset = self.dataset(self.train_split)
        rank, world = distributed.rank(), distributed.world_size()
        sampler = StepBatchSampler(
            len(dataset), self.batch_size, _num_batches(self.trainer), self.seed, rank, world, self._start
        )
        return self._loader(Augmented(dataset, self.transform), batch_sampler=sampler)

    def val_dataloader(self) -> Loader:
        return self.eval_dataloader(self.val_split)

    def eval_dataloader(self, split: str) -> Loader:
        """Every image of ``split`` once, over all ranks, unchanged; images of different sizes are padded to one."""
        dataset = self.dataset(split)
        rank, world = distributed.rank(), distributed.world_size()
        if len(dataset) < world:
            raise ProtosegError(
                f"split {split!r}: expected at least one image per process, got {len(dataset)} images for {world} "
                "processes: use fewer processes"
            )
        if self.trainer is not None:
            _check_sampler_kept(self.trainer)
        return self._loader(dataset, sampler=RankSampler(len(dataset), rank, world), batch_size=self.val_batch_size)

    def class_frequencies(self) -> Tensor:
        """Share of each class among the labelled pixels of the training masks, float32 ``c``, sums to 1.

        Raises:
            ProtosegError: no pixel is labelled, or a mask is bad.
        """
        dataset = self.dataset(self.train_split)
        counts = np.zeros(256, dtype=np.int64)
        quiet = len(dataset) <= _PROGRESS_BAR_FROM
        for index in track(range(len(dataset)), "counting classes", disable=quiet):
            counts += np.bincount(dataset.read_label(index).ravel(), minlength=256)
        classes = counts[: self.label_space.num_classes]
        if classes.sum() == 0:
            raise ProtosegError(f"split {self.train_split!r}: expected labelled pixels, got {len(dataset)} void masks")
        return torch.from_numpy(classes / classes.sum()).float()

    def state_dict(self) -> dict[str, Any]:
        """How many training batches the model has seen, and what their content depends on."""
        consumed = self._start
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            # Not the sampler's count: the workers run ahead. Nor `completed`, which is one behind while
            # on_train_batch_end saves. Lightning's count goes on from the checkpoint's after a resume.
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
            consumed = progress.processed
        return {"batches": consumed, **self._stream()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the batch after the last one seen.

        Raises:
            ProtosegError: the checkpoint's batches were drawn otherwise, so that the run could not continue.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        for key, got in self._stream().items():
            if got != state_dict[key]:
                raise ProtosegError(
                    f"resume: expected {key}={state_dict[key]}, as in the checkpoint, got {key}={got}: the batches "
                    "would not follow those already seen. Set it back, or start a new run from the weights alone"
                )
        self._start = state_dict["batches"]
        # Lightning looks for the position in the loader; ours is here.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    def _stream(self) -> dict[str, int]:
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "world_size": distributed.world_size(),
            "num_samples": len(self.dataset(self.train_split)),
        }

    def _loader(self, dataset: Any, **options: Any) -> Loader:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(dataset, self.num_workers, cuda, self.seed, distributed.rank(), **options)


def _label_space(dataset: Callable[..., SegmentationDataset]) -> LabelSpace:
    """The label space of a data set class or a partial of one, found without calling it."""
    keywords = dataset.keywords if isinstance(dataset, partial) else {}
    target = dataset.func if isinstance(dataset, partial) else dataset
    space = keywords.get("label_space", getattr(target, "label_space", None))
    if not isinstance(space, LabelSpace):
        raise ProtosegError(
            f"dataset: expected a data set class (or a partial of one) with a label_space, got {target!r}: set the "
            "class attribute, or pass label_space"
        )
    return space


def _num_batches(trainer: pl.Trainer | None) -> int:
    if trainer is None or trainer.max_steps <= 0:
        got = "no trainer" if trainer is None else f"max_steps={trainer.max_steps}"
        raise ProtosegError(f"training is counted in steps: expected a trainer with max_steps > 0, got {got}")
    _check_sampler_kept(trainer)
    limited = trainer.limit_train_batches not in (None, 1.0) or isinstance(trainer.limit_train_batches, int)
    debugging: Any = trainer  # attributes that Lightning sets without declaring them
    if limited and not debugging.fast_dev_run and not debugging.overfit_batches:
        raise ProtosegError(
            f"training is one pass of max_steps steps: expected no trainer.limit_train_batches, got "
            f"{trainer.limit_train_batches}, which would give the same batches again and again: set trainer.max_steps"
        )
    return trainer.max_steps * trainer.accumulate_grad_batches


def _check_sampler_kept(trainer: pl.Trainer) -> None:
    connector = trainer._accelerator_connector
    if connector.is_distributed and connector.use_distributed_sampler:
        raise ProtosegError(
            "the samplers here share out the data over the processes: expected trainer.use_distributed_sampler=false, "
            "got true, with which Lightning would replace them"
        )
