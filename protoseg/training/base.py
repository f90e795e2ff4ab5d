"""What the supervised and the adaptation module share: optimizer, validation, random numbers, checkpoint contents."""

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from protoseg.callbacks.loggers import PrototypeMemoryCallback
from protoseg.checkpoint import own_part, save_checkpoint
from protoseg.distributed import all_reduce_, rank
from protoseg.evaluation.metrics import Scores, SegmentationMetrics, scores, subset_means
from protoseg.evaluation.predictor import Predictor
from protoseg.functional.resize import image_size
from protoseg.lightning import batches_begun
from protoseg.losses import CrossEntropy, LogitsLoss, PixelPrototypeContrast, Seen, Step, Term
from protoseg.models.segmentor import Segmentor
from protoseg.nn import Observation, PrototypeMemory
from protoseg.text import visible
from protoseg.trained import without
from protoseg.training.restoring import prepare, renew
from protoseg.types import Batch, LabelSpace, ProtosegError, SegOutput


class SegmentationModule(pl.LightningModule):
    """Base of all training methods; a subclass writes ``training_step`` and says what ``parts`` of a step it has.

    State moves in one place, :meth:`after_optimizer_step`, once for every optimizer step that was made: after an
    overflow in half precision nothing moves.

    Args:
        losses: terms on the labelled images, by name, each with its weight.
        terms: further terms, on all parts of the step (pixel contrast; of adaptation, cross-entropy on mixed images).
        optimizer: called with the model.
        schedule: called with the optimizer and ``total_steps``; stepped once per optimizer step.
        seed: with rank and step it gives every random number of a training step, so that a resumed run draws the
            same ones as a run that was never stopped.
        subsets: further means to report, by name: the classes whose IoU each is over. ``{"16": […]}`` logs
            ``val/mIoU_16`` (SYNTHIA has 16 of Cityscapes' 19 classes, and papers report 16 and 13).

    Raises ProtosegError: model and data of different classes, a subset with a class that is not there, a term that
    needs a part which the method lacks, or two terms of one name.
    """

    parts: ClassVar[tuple[str, ...]] = ("labelled",)  # of :class:`protoseg.losses.Step` that the method has
    losses: Any  # ModuleDicts of Terms, which their type cannot say
    terms: Any

    def __init__(
        self,
        model: Segmentor,
        label_space: LabelSpace,
        losses: dict[str, Term],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        terms: dict[str, Term] | None = None,
        predictor: Predictor | None = None,
        seed: int = 0,
        subsets: dict[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if model.num_classes != label_space.num_classes:
            expected = f"{label_space.num_classes} classes of {label_space.name!r}"
            raise ProtosegError(f"model: expected the {expected}, got {model.num_classes} classes")
        self.model, self.label_space = model, label_space
        if label_space.parents:
            rivals = [term for term in losses.values() if isinstance(term, LogitsLoss | PixelPrototypeContrast)]
            if len(self.parts) > 1 or rivals:  # to those a class and its group are rivals
                raise ProtosegError("hierarchy: expected method=supervised and loss=hierarchical, got others")
            model.arrange(label_space.parents)
        terms = terms or {}
        self.check_terms([*losses.items(), *terms.items()])
        self.losses, self.terms = nn.ModuleDict(losses), nn.ModuleDict(terms)
        for term in [*losses.values(), *terms.values()]:
            term.prepare(model, label_space)
        self._waiting: list[list[Observation]] = []  # of accumulated micro-batches
        self._unjudged: tuple[Tensor, dict[str, Tensor], list[str], int] | None = None
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.predictor = predictor or Predictor()
        self.seed = seed
        self.metrics = SegmentationMetrics(label_space)
        self.subsets = {str(name): tuple(classes) for name, classes in (subsets or {}).items()}
        subset_means(torch.zeros(label_space.num_classes), label_space, self.subsets)  # refuses wrong names now
        self._settings: list[dict[str, Any]] = []  # of the optimizer's groups
        self._resumed = self._looked_at = False
        self.config: dict[str, Any] | None = None
        """The resolved config of the run; set by the command line, kept in every checkpoint."""
        self.left_out: list[str] = []  # names for :func:`protoseg.trained.without`; set by it too

    def forward(self, image: Tensor) -> Any:
        """Images ``b 3 h w`` (uint8, or float in [0, 1]) to :class:`protoseg.types.SegOutput`."""
        return self.model(image)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self)
        schedule = self.make_schedule(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        self._settings = [{k: value for k, value in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[pl.Callback]:
        # Brought by the module, because prototypes that do not move are not this algorithm.
        return [PrototypeMemoryCallback()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            prepare(checkpoint, self.trainer)
            self._resumed = True

    def follow_settings(self) -> None:
        """Once after a resume, before any step or validation, for what that saves is to have the schedule too."""
        if self._resumed:
            (optimizer,), (schedule,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
            renew(optimizer, schedule.scheduler, self._settings, self.trainer.global_step)  # type: ignore[arg-type]
            self._resumed = False

    on_train_start = follow_settings

    def on_fit_start(self) -> None:
        self.train()  # Lightning leaves the mode as it is: nothing would move in that of a network that was looked at
        self.count(getattr(getattr(self.trainer, "datamodule", None), "source", None))

    def count(self, data: Any) -> None:
        """Let losses know how frequent classes are in ``data``; ProtosegError where one needs that, and it is None."""
        balanced = [m for m in self.modules() if isinstance(m, CrossEntropy) and m.needs_frequencies]
        if balanced and data is None:
            raise ProtosegError("class_weights=balanced: expected the data of a DataModule of protoseg; give numbers")
        frequencies: Any = data.class_frequencies() if balanced else None
        for term in balanced:
            term.set_frequencies(frequencies)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.judge_loss()
        started = batches_begun(self.trainer)
        # Python, NumPy and torch (all devices) as a function of seed, rank and step.
        mixed = int(np.random.SeedSequence([self.seed, rank(), started - 1]).generate_state(1, np.uint64)[0])
        random.seed(mixed)
        np.random.seed(mixed % 2**32)  # noqa: NPY002 - libraries still draw from the global one
        torch.manual_seed(mixed)
        if started == self.trainer.max_steps * self.trainer.accumulate_grad_batches:
            # Lightning validates at multiples of the interval only; the last step must be judged too.
            self.trainer.val_check_batch = started

    @classmethod
    def check_terms(cls, terms: Sequence[tuple[str, Term]]) -> None:
        """Raise ProtosegError for a term that the method cannot serve, and for two of one name."""
        for name, term in terms:
            if missing := [part for part in term.needs if part not in cls.parts]:
                text = f"{name}: {type(term).__name__} needs {' and '.join(missing)} images, which {cls.__name__} lacks"
                remedy = "use data=SOURCE_to_TARGET with method=dacs or daformer, data=semi with cutmix, or others"
                raise ProtosegError(f"{text}; {remedy}")
        names = [name for name, _ in terms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ProtosegError(f"method: expected terms of different names, got two of {', '.join(twice)}")

    @property
    def memories(self) -> dict[str, PrototypeMemory]:
        """Prototypes by the prefix of their logs: ``prototypes`` for the head's, or for a term's where it has none."""
        found: dict[str, PrototypeMemory] = {}
        if self.model.head.memory is not None:
            found["prototypes"] = self.model.head.memory
        for name, term in self.terms.items():
            if term.memory is not None:
                found[f"{name}/prototypes" if found else "prototypes"] = term.memory
        return found

    def see(
        self, image: Tensor, label: Tensor, sure: Tensor | None = None, maps: list[Tensor] | None = None
    ) -> tuple[Seen, list[Observation]]:
        """The model's output on images ``b 3 H W``, for the terms, and what its prototype memory is to observe of it.

        ``sure`` are the labels that cluster the pixels and move the prototypes, where not ``label`` (int64 ``b H W``);
        ``maps`` what a frozen encoder made of the images, which are not looked at then.
        """
        output: SegOutput = self(image) if maps is None else self.model.from_frozen(maps, image_size(label))
        memory, stride = self.model.head.memory, self.model.stride
        if memory is None:
            return Seen(output, label, stride, None, image), []
        clustering, observation = memory.assign(output, label if sure is None else sure, stride)
        return Seen(output, label, stride, clustering, image), [observation]

    def sum_terms(self, terms: Any, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms' values with their weights, summed, and each without its gradient, which is logged."""
        values = {name: term(step) for name, term in terms.items()}
        loss = torch.stack([terms[name].weight * value for name, value in values.items()]).sum()
        values = {name: value.detach() for name, value in values.items()}
        self.log_dict({f"train/{name}": value for name, value in values.items()})
        return loss, values

    def step_output(
        self, loss: Tensor, values: dict[str, Tensor], files: list[str], observations: list[Observation], **more: Any
    ) -> dict[str, Any]:
        """What ``training_step`` returns: the whole loss, logged, and what callbacks show; notes what is to move.

        Raises ProtosegError on a CPU: a loss that is not finite; on a GPU that is told before the next step.
        """
        self.log("train/loss", loss.detach(), prog_bar=True)
        # Summed over ranks, so that all stop together: one that raised alone would leave the others waiting for it.
        wrong = all_reduce_((~torch.isfinite(loss.detach())).float())
        self._unjudged = (wrong, values, files, self.global_step)
        if wrong.device.type == "cpu":
            self.judge_loss()
        if not self.training:  # a loss that is looked at moves nothing
            return {"loss": loss, **more}
        if any(observation.memory.balances for observation in observations):
            self._waiting.append(observations)  # they cluster (K > 1), at the end of the step
        else:
            for observation in observations:
                observation.memory.observe_accumulated([observation])
        return {"loss": loss, **more}

    def judge_loss(self) -> None:
        """Raise ProtosegError if the last step's loss was not finite; a step later: the device is not waited for."""
        if self._unjudged is None:
            return
        (wrong, values, files, step), self._unjudged = self._unjudged, None
        if wrong > 0:
            parts = ", ".join(f"{name}={float(value):.4g}" for name, value in values.items())
            text = f"loss is not finite at step {step}: {parts}. Files of the batch: {', '.join(files)}"
            remedy = "lower optimizer.lr, set trainer.gradient_clip_val, or check the files"
            raise ProtosegError(f"{text}. The last checkpoint is kept; {remedy}")

    on_train_end = judge_loss

    def on_validation_start(self) -> None:
        self.judge_loss()
        self.follow_settings()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Here and not in a hook, so that a checkpoint of this step holds what moved with it.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 0.0
        super().optimizer_step(*args, **kwargs)
        if scaler is None or scaler.get_scale() >= scale:
            self.after_optimizer_step()
        else:  # fp16 overflowed: the optimizer made no step
            for memory in self.modules():
                if isinstance(memory, PrototypeMemory):
                    memory.forget()
        self._waiting = []

    def after_optimizer_step(self) -> None:
        """Move what the method keeps beside its weights: here the terms' own state and the prototypes."""
        for term in [*self.losses.values(), *self.terms.values()]:
            term.after_optimizer_step()
        for parts in zip(*self._waiting, strict=True):
            parts[0].memory.observe_accumulated(parts)
        for memory in self.memories.values():
            memory.step()
        self._waiting = []

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        predictions = self.predictor.predict(self.model, batch.image, batch.size)
        self._judge(self.metrics, predictions, batch)
        return {"predictions": predictions}

    @staticmethod
    def _judge(metrics: SegmentationMetrics, predictions: list[Tensor], batch: Batch) -> None:
        for prediction, label, (height, width) in zip(predictions, batch.label, batch.size.tolist(), strict=True):
            metrics.update(prediction, label[:height, :width])

    def scores_of(self, metrics: SegmentationMetrics) -> Scores:
        """Of what was validated; classes that these data do not label count in no mean."""
        data = getattr(getattr(self.trainer, "datamodule", None), "target", None)
        return scores(metrics.compute()["confusion"], getattr(data, "unlabelled", ()), self.label_space.parents)

    def on_validation_epoch_end(self) -> None:
        found = self.scores_of(self.metrics)
        self.metrics.reset()
        for name in ("mean_accuracy", "pixel_accuracy", "fw_IoU"):
            self.log(f"val/{name}", found[name])  # type: ignore[literal-required]
        self._log_iou("val/", found)

    def _log_iou(self, prefix: str, found: Scores) -> None:
        self.log(f"{prefix}mIoU", found["mIoU"], prog_bar=True)
        means = subset_means(found["IoU"], self.label_space, self.subsets)
        self.log_dict({f"{prefix}{name}": value for name, value in means.items()})
        self._log_classes(f"{prefix}IoU", found["IoU"])

    def _log_classes(self, key: str, values: Tensor) -> None:
        names = map(visible, self.label_space.classes)
        self.log_dict({f"{key}/{name}": float(v) for name, v in zip(names, values, strict=True)})

    def save(self, path: str | Path) -> None:
        """Write the weights, prototypes and config, as ``protoseg.load`` opens them; raises as ``write_file``."""
        save_checkpoint({"state_dict": self.state_dict(), "protoseg": own_part(self.config, self.label_space)}, path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.judge_loss()
        checkpoint["protoseg"] = own_part(self.config, self.label_space)
        checkpoint.update(without(checkpoint, self.left_out))


class SupervisedModule(SegmentationModule):
    """Cross-entropy plus, for a head with prototypes, PPC and PPD on its online clustering; and a pixel contrast."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """The whole loss of images ``b 3 h w`` (uint8, or float in [0, 1]) and int64 labels ``b h w``, -1 ignored.

        For a loop without a Trainer. After each step of its optimizer it calls ``after_optimizer_step()``; in eval mode
        nothing moves. Raises ProtosegError: others (on a GPU, which would be waited for, of the first batch alone).
        """
        if not self._looked_at:
            self.count(None)
        if label.device.type == "cpu" or not self._looked_at:
            check_batch(image, label, self.label_space.num_classes)
            self._looked_at = True
        size = torch.tensor([label.shape[1:]] * len(label))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*self.log.*")  # there is no Trainer to log to
            return self.training_step(Batch(image, label, size, []), 0)["loss"]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        seen, observations = self.see(batch.image, batch.label, maps=batch.maps)
        loss, values = self.sum_terms({**self.losses, **self.terms}, Step(self.model, replace(seen, rest=batch.rest)))
        observations += [o for term in self.terms.values() for o in term.observations]
        return self.step_output(loss, values, batch.name, observations)


def check_batch(image: Tensor, label: Tensor, classes: int) -> None:
    """Raise ProtosegError unless images and labels are as :meth:`SupervisedModule.loss` says."""
    fits = label.dtype == torch.int64 and image.ndim == 4 and label.shape == image[:, 0].shape and label.numel() > 0
    fits = fits and int(label.min()) >= -1 and int(label.max()) < classes
    if fits and image.dtype != torch.uint8:  # resized floats may be a little beyond
        fits = image.is_floating_point() and -0.5 < float(image.min()) <= float(image.max()) < 1.5
    if not fits:
        got = f"{image.dtype} {tuple(image.shape)} and {label.dtype} {tuple(label.shape)}, or other numbers"
        wanted = f"images b 3 h w, uint8 or in [0, 1], and int64 labels b h w of 0 to {classes - 1}, or -1: ignored"
        raise ProtosegError(f"loss: expected {wanted}; got {got}")
