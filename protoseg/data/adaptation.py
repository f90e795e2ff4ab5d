"""The DataModule of domain adaptation: labelled source images and unlabelled target images, in step."""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from protoseg import distributed
from protoseg.data.datamodule import SegmentationDataModule, check_same_stream
from protoseg.data.loading import Loader, PairedLoader, RareClasses
from protoseg.types import LabelSpace, ProtosegError


class AdaptationDataModule(pl.LightningDataModule):
    """A source and a target ``SegmentationDataModule``. Training gives ``AdaptationBatch``es, evaluation the target's
    ``Batch``es. No file is looked at before ``setup`` or the first use of a split.

    Args:
        source, target: partials of ``SegmentationDataModule``. What both share is given below and overrules theirs.
        seed: base seed of the order and of the augmentation of both, which draw independently.
        mapping: where their classes differ: name of each source class -> name of a target class, or None for ignored;
            or a name in ``label_spaces.MAPPINGS``. A target without classes of its own has the source's.
        rare_classes: draw the source images by rare-class sampling; None: in shuffled epochs.
        validate_source: validate on the source too, as the second loader.
        shared: of both, such as ``batch_size``, ``crop_size`` and ``num_workers``: each has as many.

    Raises ProtosegError: classes that differ without a mapping, a mapping that does not fit, values that make no sense;
    later, data that is missing or bad.
    """

    def __init__(
        self,
        source: Callable[..., SegmentationDataModule],
        target: Callable[..., SegmentationDataModule],
        seed: int = 0,
        mapping: Mapping[str, str | None] | str | None = None,
        rare_classes: RareClasses | None = None,
        validate_source: bool = False,
        **shared: Any,
    ) -> None:
        self._parts: tuple[SegmentationDataModule, ...] = ()  # the trainer is passed on to them
        super().__init__()
        self.seed, self.validate_source = seed, validate_source
        # Apart for every seed, and from one another.
        self.source = source(**shared, seed=2 * seed, rare_classes=rare_classes)
        self.target = target(**shared, seed=2 * seed + 1, labels=False, label_space=self.source.label_space)
        if validate_source and self.target.val_split is None:
            text = "data.validate_source: expected a target that is validated too, got data.target.val_split=null"
            raise ProtosegError(f"{text}: set it")
        self.source.map_classes(self.target.label_space, mapping)
        self._parts = (self.source, self.target)
        self._validated = [self.target, self.source] if validate_source else [self.target]

    @property
    def label_space(self) -> LabelSpace:
        """The target's classes, which the source's labels are mapped to."""
        return self.target.label_space

    @property
    def trainer(self) -> pl.Trainer | None:
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        self._trainer = trainer
        for part in self._parts:
            part.trainer = trainer

    def setup(self, stage: str) -> None:
        if stage == "fit":
            for part in self._parts:
                part.prepare_training()
            source, target = ({os.path.realpath(image) for image, _ in p.train_dataset().samples} for p in self._parts)
            if distributed.rank() == 0 and (shared := sorted(source & target)):
                text = f"data: expected a target of other images than the source, got {len(shared)} of {len(target)}"
                got = f"that the source has with their labels ({shared[0]}, …)"
                warnings.warn(f"{text} {got}: set data.source.root and data.target.root, or train_list", stacklevel=2)
        if stage in ("fit", "validate"):
            for part in self._validated:
                part.prepare_validation()

    def train_dataloader(self) -> PairedLoader:
        """One pass is the whole training; raises as ``SegmentationDataModule.train_dataloader``."""
        return PairedLoader(self.source.train_dataloader(), self.target.train_dataloader())

    def val_dataloader(self) -> Loader | list[Loader]:
        """The target's, or with ``validate_source`` the target's and the source's."""
        loaders: list[Any] = [part.val_dataloader() for part in self._validated]
        return loaders if self.validate_source else loaders[0]

    def state_dict(self) -> dict[str, Any]:
        """The place in both streams, and what their content depends on."""
        return {"seed": self.seed, "source": self.source.state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue both streams; raises as ``SegmentationDataModule.load_state_dict``."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_same_stream(state_dict, {"seed": self.seed})
        for name, part in (("source", self.source), ("target", self.target)):
            try:
                part.load_state_dict(state_dict[name])
            except ProtosegError as error:
                raise ProtosegError(f"data.{name}: {error}") from None
