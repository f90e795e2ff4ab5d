"""What the supervised and the adaptation module share: optimizer, validation, random numbers, checkpoint contents."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from protoseg import __version__
from protoseg.callbacks.prototype_memory import PrototypeMemoryCallback
from protoseg.distributed import all_reduce_, rank
from protoseg.inference import Predictor
from protoseg.losses import CrossEntropy, LossInput, LossTerm
from protoseg.metrics import SegmentationMetrics, subset_means
from protoseg.models.segmentor import Segmentor
from protoseg.nn.prototype_memory import Observation
from protoseg.text import visible
from protoseg.types import Batch, LabelSpace, ProtosegError, SegOutput


class SegmentationModule(pl.LightningModule):
    """Base of all training methods; a subclass writes ``training_step``.

    Args:
        model: what is trained.
        label_space: classes of the data; must match the model.
        losses: terms by name, each with its weight.
        optimizer: called with the model.
        schedule: called with the optimizer and ``total_steps``; stepped once per optimizer step.
        predictor: how validation images are predicted.
        seed: with rank and step it gives every random number of a training step, so that a resumed run draws the
            same ones as a run that was never stopped.
        subsets: further means to report, by name: the classes whose IoU each is over. ``{"16": […]}`` logs
            ``val/mIoU_16`` (SYNTHIA has 16 of Cityscapes' 19 classes, and papers report 16 and 13).

    Raises:
        ProtosegError: model and data of different classes, or a subset with a class that is not there.
    """

    def __init__(
        self,
        model: Segmentor,
        label_space: LabelSpace,
        losses: dict[str, LossTerm],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        predictor: Predictor | None = None,
        seed: int = 0,
        subsets: dict[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if model.num_classes != label_space.num_classes:
            raise ProtosegError(
                f"model and data disagree: the model has {model.num_classes} classes, "
                f"the label space {label_space.name!r} has {label_space.num_classes}"
            )
        self.model = model
        self.label_space = label_space
        self.losses = nn.ModuleDict(losses)
        self.loss_weights = {name: term.weight for name, term in losses.items()}
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.predictor = predictor or Predictor()
        self.seed = seed
        self.metrics = SegmentationMetrics(label_space)
        self.subsets = {str(name): tuple(classes) for name, classes in (subsets or {}).items()}
        subset_means(torch.zeros(label_space.num_classes), label_space, self.subsets)  # refuses wrong names now
        self.config: dict[str, Any] | None = None
        """The resolved config of the run; set by the command line, kept in every checkpoint."""

    def forward(self, image: Tensor) -> Any:
        """Images ``b 3 h w`` (uint8, or float in [0, 1]) to :class:`protoseg.types.SegOutput`."""
        return self.model(image)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self)
        total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = self.make_schedule(optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise ProtosegError(
                f"the checkpoint does not fit this model: {' '.join(str(error).split())}. "
                "Resume with the encoder, decoder and head it has"
            ) from error

    def configure_callbacks(self) -> list[pl.Callback]:
        # Brought by the module, because prototypes that do not move are not this algorithm.
        return [PrototypeMemoryCallback()]

    def on_fit_start(self) -> None:
        balanced = [m for m in self.modules() if isinstance(m, CrossEntropy) and m.needs_frequencies]
        if balanced:
            frequencies = self.trainer.datamodule.class_frequencies()  # type: ignore[attr-defined]
            for term in balanced:
                term.set_frequencies(frequencies.to(term.class_weights))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Counted over resumes too, unlike batch_idx, which starts anew where a finished run is extended.
        started = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed_step(self.seed, started - 1)
        if started == self.trainer.max_steps * self.trainer.accumulate_grad_batches:
            # Lightning validates at multiples of the interval only; the last step must be judged too.
            self.trainer.val_check_batch = batch_idx + 1

    def see(self, image: Tensor, label: Tensor, sure: Tensor | None = None) -> tuple[LossInput, list[Observation]]:
        """The model's output on images, for the loss terms, and what its prototype memory (if any) is to observe of it.

        Args:
            image: ``b 3 H W``.
            label: int64 ``b H W``.
            sure: the labels that cluster the pixels and move the prototypes, where they are not ``label`` itself.
        """
        output: SegOutput = self(image)
        memory = getattr(self.model.head, "memory", None)
        if memory is None:
            return LossInput(output, label, self.model.stride, None, image, self.model), []
        clustering, observation = memory.assign(output, label if sure is None else sure, self.model.stride)
        return LossInput(output, label, self.model.stride, clustering, image, self.model), [observation]

    def weighted_sum(self, terms: dict[str, Tensor], files: list[str]) -> Tensor:
        """Log every term, sum them with their weights, and stop the run at a sum that is not finite."""
        loss = torch.stack([self.loss_weights[name] * value for name, value in terms.items()]).sum()
        # Summed over ranks, so that all stop together: one that raised alone would leave the others waiting for it.
        if all_reduce_((~torch.isfinite(loss.detach())).float()) > 0:
            parts = ", ".join(f"{name}={float(value):.4g}" for name, value in terms.items())
            raise ProtosegError(
                f"loss is not finite at step {self.global_step}: {parts}. Files of the batch: {', '.join(files)}. "
                "The last checkpoint is kept; lower optimizer.lr, set trainer.gradient_clip_val, or check the files"
            )
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        return loss

    def step_output(self, loss: Tensor, observations: list[Observation], **more: Any) -> dict[str, Any]:
        """What ``training_step`` returns: the whole loss, logged, and what the callbacks need."""
        self.log("train/loss", loss.detach(), prog_bar=True)
        return {"loss": loss, "observations": observations, **more}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        predictions = self.predictor.predict(self.model, batch.image, batch.size)
        self._judge(self.metrics, predictions, batch)
        return {"predictions": predictions}

    @staticmethod
    def _judge(metrics: SegmentationMetrics, predictions: list[Tensor], batch: Batch) -> None:
        for prediction, label, (height, width) in zip(predictions, batch.label, batch.size.tolist(), strict=True):
            metrics.update(prediction, label[:height, :width])

    def on_validation_epoch_end(self) -> None:
        scores = self.metrics.compute()
        self.metrics.reset()
        for name in ("mean_accuracy", "pixel_accuracy", "fw_IoU"):
            self.log(f"val/{name}", scores[name])  # type: ignore[literal-required]
        self.log("val/mIoU", scores["mIoU"], prog_bar=True)
        self._log_subsets("val/", scores["IoU"])
        self._log_classes("val/IoU", scores["IoU"])

    def _log_subsets(self, prefix: str, iou: Tensor) -> None:
        means = subset_means(iou, self.label_space, self.subsets)
        self.log_dict({f"{prefix}{name}": value for name, value in means.items()})

    def _log_classes(self, key: str, values: Tensor) -> None:
        names = map(visible, self.label_space.classes)
        self.log_dict({f"{key}/{name}": float(v) for name, v in zip(names, values, strict=True)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["protoseg"] = {
            "version": __version__,
            "config": self.config,
            "label_space": {
                "name": self.label_space.name,
                "classes": list(self.label_space.classes),
                "colors": [list(color) for color in self.label_space.colors],
            },
        }


def seed_step(seed: int, step: int) -> None:
    """Seed Python, NumPy and torch (all devices) as a function of seed, rank and step."""
    mixed = int(np.random.SeedSequence([seed, rank(), step]).generate_state(1, np.uint64)[0])
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - libraries still draw from the global one
    torch.manual_seed(mixed)
