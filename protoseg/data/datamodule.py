"""One DataModule for all data sets: training counted in steps and resumable, evaluation at full resolution."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from inspect import signature
from math import prod
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from protoseg import distributed
from protoseg.data import loading
from protoseg.data.checking import check_training_labels, check_validation_labels, image_notes, nothing_labelled
from protoseg.data.class_file import in_tree
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import FILE_REST, NOT_ANNOTATED, mapping_table, named_mapping, relabelled
from protoseg.data.loading import TIMEOUT, Augmented, Loader, RareClasses
from protoseg.data.statistics import ClassStatistics, class_statistics, image_size, spread
from protoseg.data.transforms import TrainTransform
from protoseg.lightning import batches_seen, replaces_samplers
from protoseg.types import LabelSpace, ProtosegError, check_choice

BYTES_PER_PIXEL = 3 + 8  # of a Batch: the image, and the label as int64


class SegmentationDataModule(pl.LightningDataModule):
    """Loaders that give ``Batch``es. No file is looked at before ``setup`` or the first use of a split.

    Args:
        dataset: data set class, or a partial of it, called with ``split=`` (and ``root=`` if given).
        batch_size: training samples per step and process.
        val_batch_size, num_workers: evaluation samples per batch, and loader processes; no result depends on them.
        timeout: seconds that a batch of these is waited for.
        crop_size, scale, photometric, max_class_share, aspect, brightness, augment: see ``TrainTransform``.
        rare_classes: draw the training images by rare-class sampling; None: in shuffled epochs.
        seed: base seed of the order and of the augmentation.
        train_split, val_split: names of the splits; without ``val_split`` nothing is validated.
        root: folder of the data; None leaves it to ``dataset``.
        labels: False trains on images alone: no training mask is opened, or need be there. Evaluation is not changed.
        relabel: classes to read otherwise: {class: null to ignore it, or the class that it becomes}, see
            ``label_spaces.relabelled``.
        annotated: the classes that the masks show, after ``relabel``, where these are not all; a pixel of another class
            is known to be of one of the others (``Batch.rest``) in training, and is ignored everywhere else.
        exif: ``apply`` turns images as their EXIF says, ``ignore`` reads them as stored; masks are never turned.
        hierarchy: a tree over the classes, after ``relabel``, whose groups become classes: see ``class_file.in_tree``.
        label_space: the classes of images that have none of their own.
        train_list, listed: images of ``train_split`` that it has alone, or lacks: see ``SegmentationDataset.keep``.

    Raises ProtosegError: values that make no sense; later, data that is missing or bad.
    """

    parts: Mapping[str, "SegmentationDataModule"] = {}  # the data sets that it is put together from

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
        rare_classes: RareClasses | None = None,
        seed: int = 0,
        train_split: str = "train",
        val_split: str | None = "val",
        root: str | None = None,
        labels: bool = True,
        relabel: Mapping[str, str | None] | None = None,
        timeout: float = TIMEOUT,
        exif: str = "apply",
        aspect: Sequence[float] = (1.0, 1.0),
        brightness: int = 0,
        label_space: LabelSpace | None = None,
        annotated: Sequence[str] | None = None,
        augment: Sequence[Any] = (),
        train_list: str | Sequence[str] | None = None,
        listed: bool = True,
        hierarchy: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("exif", exif, ("apply", "ignore"))
        if min(batch_size - 1, val_batch_size - 1, num_workers, seed) < 0:
            text = "expected batch_size and val_batch_size of at least 1, num_workers and seed of at least 0"
            raise ProtosegError(f"{text}, got {batch_size}, {val_batch_size}, {num_workers} and {seed}")
        if not labels and (max_class_share, rare_classes) != (None, None):
            raise ProtosegError("expected neither max_class_share nor rare_classes without labels: set both to null")
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.num_workers, self.timeout, self.seed = num_workers, timeout, seed
        self.train_split, self.val_split = train_split, val_split
        self.labels, self.rare_classes, self.turn = labels, rare_classes, exif == "apply"
        self.label_space = _label_space(dataset, label_space)
        self._own_classes = self.label_space.num_classes
        self.scale, self.max_class_share = scale, max_class_share
        self.transform = TrainTransform(crop_size, scale, photometric, max_class_share, aspect, brightness, augment)
        self._make = dataset if root is None else partial(dataset, root=root)
        self._mapping: NDArray[np.uint8] | None = None
        self._hidden: list[int] = []  # train ids of what ``annotated`` lacks
        self.train_list, self.listed = train_list, listed
        self._datasets: dict[tuple[str, bool], SegmentationDataset] = {}
        self._start = 0
        self.kept_views: Any = None  # a data set of whole batches by (index, seed), which training reads instead
        if relabel:
            self.map_classes(*relabelled(self.label_space, relabel))
        if annotated is not None:
            self.label_space.ids(annotated, "data.annotated")
            kept = {name: name if name in annotated else NOT_ANNOTATED for name in self.label_space.classes}
            self.map_classes(self.label_space, kept)
            self._hidden = [i for i, name in enumerate(self.label_space.classes) if name not in annotated]
        if hierarchy:
            self.map_classes(in_tree(self.label_space, hierarchy), {name: name for name in self.label_space.classes})
        self.annotated = annotated is not None or NOT_ANNOTATED in (relabel or {}).values()

    @property
    def source(self) -> "SegmentationDataModule":
        """What is trained on, and, as ``target``, judged on; of an ``AdaptationDataModule`` these are two."""
        return self

    target = source

    def map_classes(self, label_space: LabelSpace, mapping: Mapping[str, str | None] | str | None) -> None:
        """Read the labels as classes of another label space; see ``mapping_table``, and ``named_mapping`` of a name."""
        mapping = named_mapping(mapping) if isinstance(mapping, str) else mapping
        table = mapping_table(self.label_space, label_space, mapping)
        self._mapping = table if self._mapping is None else table[self._mapping]
        self._hidden = table[self._hidden].tolist()
        self.label_space = label_space
        self._datasets.clear()

    @property
    def unlabelled(self) -> list[int]:
        """Train ids that no label of these data becomes: of a model that knows more classes than they do."""
        becomes = None if self._mapping is None else self._mapping[: self._own_classes]
        return [] if becomes is None else [i for i in range(self.label_space.leaves) if i not in becomes]

    @property
    def rest(self) -> list[int] | None:
        """Train ids that pixels of classes which are not annotated may be of; None where there are no such pixels."""
        partial = self._mapping is not None and FILE_REST in self._mapping[: self._own_classes]
        # A mapping may read a class that is annotated and one that is not as the same.
        hidden = {i for i in self._hidden if i < self.label_space.num_classes}
        return sorted({*self.unlabelled, *hidden}) if partial else None

    def dataset(self, split: str | None, labels: bool = True) -> SegmentationDataset:
        """The data set of ``split``, made at the first call; raises ProtosegError if its files are not in order."""
        if split is None:
            text = "data: expected a split with masks to judge by, got none (val_split=null)"
            raise ProtosegError(f"{text}; name one (split=NAME), or look at predictions: mode=predict images=FOLDER")
        key = (split, labels)
        if key not in self._datasets:
            # Told the class where it asks, so that the masks need not be there; else they are only left unopened.
            told = {"labels": False} if not labels and "labels" in signature(self._make).parameters else {}
            dataset = self._make(split=split, **told)
            if self.train_list is not None and split == self.train_split:
                dataset.keep(self.train_list, self.listed)
            if not labels:
                dataset.drop_labels()
            if self._mapping is not None:
                dataset.map_classes(self.label_space, self._mapping)
            dataset.label_space, dataset.turn, dataset.transform = self.label_space, self.turn, self.transform
            if (rest := self.rest) is not None:
                dataset.rest, others = rest, ", ".join(self.label_space.classes[i] for i in self.unlabelled)
                note = f"split {split!r}: pixels of classes not annotated ({others}) count in no evaluation"
                dataset.notes = [*dataset.notes, note]
            self._datasets[key] = dataset
        return self._datasets[key]

    def train_dataset(self) -> SegmentationDataset:
        """What training reads; raises as ``dataset``, and where masks are missing without ``labels=False``."""
        dataset = self.dataset(self.train_split, self.labels)
        bare = next((image for image, mask in dataset.samples if mask is None), None)
        if self.labels and bare is not None:
            text = f"split {self.train_split!r}: expected images with masks to train on, got {bare}, which has none"
            raise ProtosegError(f"{text}: such images serve as the target of domain adaptation")
        return dataset

    def setup(self, stage: str) -> None:
        """Make the data sets of ``stage``; raises as these, and where there is nothing to learn from or to judge by."""
        if stage == "fit":
            self.prepare_training()
        if stage in ("fit", "validate"):
            self.prepare_validation()

    def prepare_training(self) -> None:
        """The part of ``setup`` for the training split."""
        dataset = self.train_dataset()
        _tell(dataset)
        if self.labels:
            check_training_labels(dataset)

    def prepare_validation(self) -> None:
        """The part of ``setup`` for the validation split."""
        limit = None if self.trainer is None else self.trainer.limit_val_batches
        if self.val_split is not None and limit != 0:
            _tell(self.dataset(self.val_split))
            if limit is not None:
                check_validation_labels(self.dataset(self.val_split))

    def train_dataloader(self) -> Loader:
        """One pass over this loader is the whole training: ``max_steps * accumulate_grad_batches`` batches.

        Raises ProtosegError: the trainer does not count in steps, cuts the pass short or replaces the sampler; or too
        few pixels for rare-class sampling.
        """
        dataset = self.train_dataset()
        place = (distributed.rank(), distributed.world_size(), self._start)
        sampler = loading.StepBatchSampler(
            len(dataset), self.batch_size, _num_batches(self.trainer), self.seed, *place, dataset.weights
        )
        height, width = self.transform.crop_size
        loading.check_shared_memory(self.num_workers, lambda: self.batch_size * height * width * BYTES_PER_PIXEL)
        rare = self.rare_classes
        draw = None if rare is None else loading.RareClassDraw(self.class_statistics(), rare, dataset.weights)
        return self._loader(self.kept_views or Augmented(dataset, draw), batch_sampler=sampler)

    def views_loader(self, indices: Sequence[int], views: int) -> Loader:
        """For each of the training images a batch of its ``views`` augmented views, the same at every call."""
        batches = [[(i, loading.sample_seed(self.seed, i * views + view)) for view in range(views)] for i in indices]
        return self._loader(Augmented(self.train_dataset(), None), batch_sampler=batches)

    def val_dataloader(self) -> Loader | list[Loader]:
        """That of ``val_split``; none where nothing is validated."""
        return [] if self.val_split is None else self.eval_dataloader(self.val_split)

    def eval_dataloader(self, split: str | None) -> Loader:
        """Every image of ``split`` once, over all ranks, unchanged; images of different sizes are padded to one."""
        dataset = self.dataset(split)
        rank, world = distributed.rank(), distributed.world_size()
        if len(dataset) < world:
            text = f"split {split!r}: expected at least one image per process"
            raise ProtosegError(f"{text}, got {len(dataset)} images for {world} processes: use fewer processes")
        if self.trainer is not None:
            _check_sampler_kept(self.trainer)
        loading.check_shared_memory(self.num_workers, lambda: self.val_batch_size * _pixels(dataset) * BYTES_PER_PIXEL)
        return self._loader(dataset, sampler=range(rank, len(dataset), world), batch_size=self.val_batch_size)

    def class_statistics(self) -> ClassStatistics:
        """Pixels of each class in each training mask; see ``statistics.class_statistics``, also for what is raised."""
        return class_statistics(self.train_dataset())

    def class_frequencies(self) -> Tensor:
        """Share of each class among the labelled pixels of training, as it draws masks, float32 ``c``, sums to 1.

        Raises ProtosegError: no pixel is labelled, or a mask is bad.
        """
        statistics, dataset = self.class_statistics(), self.train_dataset()
        pixels = statistics.pixels if dataset.weights is None else dataset.weights @ statistics.counts
        if pixels.sum() == 0:
            raise nothing_labelled(dataset)
        return torch.from_numpy(pixels / pixels.sum()).float()

    def state_dict(self) -> dict[str, Any]:
        """How many training batches the model has seen, and what their content depends on."""
        consumed = self._start
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            consumed = batches_seen(self.trainer)  # not the sampler's count: the workers run ahead
        return {"batches": consumed, **self._stream()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the batch after the last one seen; ProtosegError if those were drawn otherwise."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_same_stream(state_dict, self._stream())
        start = state_dict.get("batches")
        if type(start) is not int or start < 0:
            raise ProtosegError(f"resume: expected a checkpoint with the number of batches seen, got {start!r}")
        self._start = start
        # Lightning looks for the position in the loader; ours is here.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    def _stream(self) -> dict[str, Any]:
        dataset = self.train_dataset()
        lists = [part.train_list for part in (self, *self.parts.values())]
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "world_size": distributed.world_size(),
            "num_samples": len(dataset),
            "train_list": sha256("\n".join(dataset.names).encode()).hexdigest() if any(lists) else None,
            "weights": None if dataset.weights is None else np.unique(dataset.weights).tolist(),
            "rare_classes": None if self.rare_classes is None else asdict(self.rare_classes),
        }

    def _loader(self, dataset: Any, **options: Any) -> Loader:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(dataset, self.num_workers, self.seed, self.timeout, pin_memory=cuda, **options)


def _tell(dataset: SegmentationDataset) -> None:
    """Warn of files left out, of how masks were found, of images among a few that EXIF turns or that lose depth."""
    if distributed.rank() == 0:
        for note in [note for part in dataset.parts or [dataset] for note in image_notes(part, 64)]:
            warnings.warn(note, stacklevel=1)  # of one place, so that what is said of both splits is said once


def _pixels(dataset: SegmentationDataset) -> int:
    """Pixels of the largest of a few images."""
    found = [0]
    for index in spread(len(dataset), 16):
        with suppress(ProtosegError):  # told when the image's turn comes
            found.append(prod(image_size(dataset.samples[index][0])))
    return max(found)


def check_same_stream(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ProtosegError unless the batches of ``now`` follow those of the checkpoint."""
    for key, got in now.items():
        if got != saved.get(key):
            text = f"resume: expected {key}={saved.get(key)}, as in the checkpoint, got {key}={got}: the batches that"
            raise ProtosegError(f"{text} follow would be others. Set it back, or start anew from the weights alone")


def _label_space(dataset: Callable[..., SegmentationDataset], other: LabelSpace | None) -> LabelSpace:
    """The label space of a data set class or a partial of one, found without calling it, or ``other``."""
    made = partial(dataset)  # of a partial, the same again
    target, keywords = made.func, made.keywords
    known = isinstance(target, type) and issubclass(target, SegmentationDataset)
    own = target.space(**keywords) if known else getattr(target, "label_space", None)  # type: ignore[attr-defined]
    space = keywords.get("label_space", own) or other
    if not isinstance(space, LabelSpace):
        text = f"dataset: expected a data set class (or a partial of one) with a label_space, got {target!r}"
        raise ProtosegError(f"{text}: set the class attribute, or pass label_space")
    return space


def _num_batches(trainer: pl.Trainer | None) -> int:
    if trainer is None or trainer.max_steps <= 0:
        got = trainer and f"max_steps={trainer.max_steps}"
        raise ProtosegError(f"training is counted in steps: expected a trainer with max_steps > 0, got {got}")
    _check_sampler_kept(trainer)
    limited = trainer.limit_train_batches not in (None, 1.0) or isinstance(trainer.limit_train_batches, int)
    debugging: Any = trainer  # attributes that Lightning sets without declaring them
    if limited and not debugging.fast_dev_run and not debugging.overfit_batches:
        text = f"expected no trainer.limit_train_batches, got {trainer.limit_train_batches}"
        raise ProtosegError(f"training is one pass of max_steps steps: {text}: set trainer.max_steps")
    return trainer.max_steps * trainer.accumulate_grad_batches


def _check_sampler_kept(trainer: pl.Trainer) -> None:
    if replaces_samplers(trainer):
        text = "the samplers here share out the data over the processes: expected trainer.use_distributed_sampler=false"
        raise ProtosegError(f"{text}, got true, with which Lightning would replace them")
