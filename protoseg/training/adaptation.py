"""Teacher-student domain adaptation: DACS, DAFormer, HRDA, MIC and PGPC differ in their terms, not in this step."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from protoseg.distributed import all_reduce_, world_size
from protoseg.functional.mixing import class_mix_mask, paste, strong_transform
from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.resize import upsample_logits
from protoseg.losses import AdaptationInput, AdaptationTerm, LossTerm, PseudoLabels
from protoseg.metrics import SegmentationMetrics
from protoseg.nn.norms import unmoved_statistics
from protoseg.nn.teacher import EMATeacher
from protoseg.training.base import SegmentationModule
from protoseg.types import IGNORE_INDEX, AdaptationBatch, Batch, ProtosegError, SegOutput

ONE_CLASS_SHARE = 0.99


class AdaptationModule(SegmentationModule):
    """A student learns from labelled source images and from what its own average, the teacher, says of target images.

    Without ``terms`` it is the source-only baseline: the target images are not looked at. With them, the running
    statistics of BatchNorm are those of the mixed images alone (the released codes of DACS and DAFormer take source
    and mixed images alike), which no gradient depends on.

    Args:
        args, options: of :class:`SegmentationModule`; its losses are those on the source images.
        source_terms: further terms on the source images, by name (feature distance).
        terms: terms of the adaptation, by name (cross-entropy on mixed images, pixel contrast, masked consistency).
        alpha: largest momentum of the teacher.
        threshold: confidence from which a pseudo-label is reliable.
        ignore_top, ignore_bottom: rows of the target images without pseudo-label (the car's bonnet, the border of a
            rectified image; 15 and 120 of Cityscapes' 512 in DAFormer, which gives them the weight 0 instead, so that
            they still count in the mean's number of pixels).
        jitter, jitter_probability, blur: see :func:`protoseg.functional.mixing.strong_transform`.
        separate_backward: the gradients of the source terms are computed before the mixed images go through the
            student. The same gradients, less memory, unless a term needs the source outputs again.

    Raises:
        ProtosegError: values that make no sense, or two terms of one name.
    """

    terms: Any  # a ModuleDict of AdaptationTerms, which its type cannot say

    def __init__(
        self,
        *args: Any,
        source_terms: dict[str, LossTerm] | None = None,
        terms: dict[str, AdaptationTerm] | None = None,
        alpha: float = 0.999,
        threshold: float = 0.968,
        ignore_top: int = 0,
        ignore_bottom: int = 0,
        jitter: float = 0.2,
        jitter_probability: float = 0.8,
        blur: bool = True,
        separate_backward: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        terms, source_terms = terms or {}, source_terms or {}
        if self.label_space.num_classes > IGNORE_INDEX:
            raise ProtosegError(
                f"domain adaptation: expected at most {IGNORE_INDEX} classes (pseudo-labels are ignored where they are "
                f"{IGNORE_INDEX}), got {self.label_space.num_classes} of label space {self.label_space.name!r}"
            )
        if not 0 < threshold <= 1 or min(ignore_top, ignore_bottom, jitter) < 0 or not 0 <= jitter_probability <= 1:
            raise ProtosegError(
                "method: expected threshold in (0, 1], ignore_top, ignore_bottom and jitter of at least 0 and "
                f"jitter_probability in [0, 1], got {threshold}, {ignore_top}, {ignore_bottom}, {jitter} and "
                f"{jitter_probability}"
            )
        twice = set(self.losses) & set(terms) | set(self.losses) & set(source_terms) | set(source_terms) & set(terms)
        if twice:
            raise ProtosegError(f"method: expected terms of different names, got two of {', '.join(sorted(twice))}")
        if separate_backward and self.model.auxiliary is not None:
            raise ProtosegError(
                "method.separate_backward: expected a model without auxiliary head, whose parameters the second "
                "backward would not reach, got one; set auxiliary=null, or separate_backward=false"
            )
        self.losses.update(source_terms)
        self.terms = torch.nn.ModuleDict(terms)
        for name, term in [*source_terms.items(), *terms.items()]:
            self.loss_weights[name] = term.weight
            term.prepare(self.model, self.label_space, alpha)
        self.teacher = EMATeacher(self.model, alpha)
        self.threshold = threshold
        self.ignore_top, self.ignore_bottom = ignore_top, ignore_bottom
        self.jitter, self.jitter_probability, self.blur = jitter, jitter_probability, blur
        self.separate_backward = separate_backward
        self._told_of_one_class = False
        self.teacher_metrics = SegmentationMetrics(self.label_space)
        self.reliable_metrics = SegmentationMetrics(self.label_space)
        self.source_metrics = SegmentationMetrics(self.label_space)

    def training_step(self, batch: AdaptationBatch, batch_idx: int) -> dict[str, Any]:
        source, target = batch
        self._zero_gradients(batch_idx)

        # The statistics that student and teacher will be judged by are those of mixed images, nearer to the target.
        with unmoved_statistics(self.model) if self.terms else nullcontext():
            on_source, observations = self.see(source.image, source.label)
        loss = self.weighted_sum({name: term(on_source) for name, term in self.losses.items()}, source.name)
        if not self.terms:
            return self.step_output(loss, observations)
        loss = self._maybe_backward(loss)

        said, pseudo = self.pseudo_labels(target.image)
        pasted = class_mix_mask(source.label, self.label_space.num_classes)
        image = paste(pasted, source.image, target.image)
        image = strong_transform(image, self.jitter, self.jitter_probability, self.blur)
        label = paste(pasted, source.label, pseudo.label)
        reliable = paste(pasted, source.label, pseudo.label.where(pseudo.confidence >= self.threshold, IGNORE_INDEX))
        weight = paste(pasted, torch.ones_like(pseudo.confidence), pseudo.quality.expand(pasted.shape))

        on_mixed, more = self.see(image, label, reliable)
        adaptation = AdaptationInput(self.model, on_source, on_mixed, pasted, weight, target.image, pseudo, said)
        terms = {name: term(adaptation) for name, term in self.terms.items()}
        loss = loss + self.weighted_sum(terms, [*source.name, *target.name])
        observations += more + [o for term in self.terms.values() for o in term.observations]
        self._log_step(pseudo)
        picture = {"image": target.image, "mixed": image, "label": pseudo.label, "confidence": pseudo.confidence}
        return self.step_output(loss, observations, picture={key: value[0] for key, value in picture.items()})

    @torch.no_grad()
    def pseudo_labels(self, image: Tensor) -> tuple[SegOutput, PseudoLabels]:
        """What the teacher says of target images ``b 3 H W``: its output on its grid, and labels at full resolution."""
        output: SegOutput = self.teacher(image)
        with no_autocast(output.logits):
            size = (image.shape[2], image.shape[3])
            logits = upsample_logits(at_least_fp32(output.logits), size, self.model.stride)
            confidence, label = logits.softmax(1).max(1)
        sure = (confidence >= self.threshold).to(confidence.dtype).mean()
        quality = all_reduce_(sure) / world_size()  # every rank has as many pixels
        rows = torch.arange(size[0], device=label.device).view(1, -1, 1)
        outside = (rows < self.ignore_top) | (rows >= size[0] - self.ignore_bottom)
        return output, PseudoLabels(label.masked_fill(outside, IGNORE_INDEX), confidence, quality)

    def _zero_gradients(self, batch_idx: int) -> None:
        if self.separate_backward and batch_idx % self.trainer.accumulate_grad_batches == 0:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

    def _maybe_backward(self, loss: Tensor) -> Tensor:
        """With ``separate_backward``: the gradients of ``loss`` now; its value is kept, for the sum."""
        if not self.separate_backward:
            return loss
        keep = any(term.uses_source_graph for term in self.terms.values())
        # Lightning's own backward comes after its autocast; in it, fp32 parts would go backward in half precision.
        with no_autocast(loss):
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None, retain_graph=keep)
        return loss.detach()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        # Lightning clears after training_step; gradients of a separate backward are already there by then.
        if not self.separate_backward or not self.terms:
            optimizer.zero_grad()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Here and not in a hook, so that a checkpoint of this step holds the teacher of this step.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 0.0
        super().optimizer_step(*args, **kwargs)
        if scaler is None or scaler.get_scale() >= scale:  # else fp16 overflowed: the optimizer made no step
            self.teacher.update_parameters(self.model)
        for term in self.terms.values():
            term.step()

    def _log_step(self, pseudo: PseudoLabels) -> None:
        self.log("train/quality", pseudo.quality)
        if (self.global_step + 1) % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # Lightning would not write them down
        classes = self.label_space.num_classes
        sure = pseudo.label[pseudo.confidence >= self.threshold].bincount(minlength=classes)[:classes]
        total = pseudo.label.flatten().bincount(minlength=classes)[:classes]
        self._log_classes("train/reliable", sure / total)
        if self.global_step >= self.trainer.max_steps // 10:  # before, the teacher may not know better
            self._warn_of_one_class(total, "target pixels")
        for name, term in self.terms.items():
            for key, value in term.statistics.items():
                if value.ndim:
                    self._log_classes(f"{name}/{key}", value)
                else:
                    self.log(f"{name}/{key}", value)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:  # type: ignore[override]
        if dataloader_idx == 1:
            self._judge(self.source_metrics, self.predictor.predict(self.model, batch.image, batch.size), batch)
            return {}
        outputs = super().validation_step(batch, batch_idx)
        teacher: Any = self.teacher.module
        said = self.predictor.predict_with_confidence(teacher, batch.image, batch.size)
        self._judge(self.teacher_metrics, [label for label, _ in said], batch)
        for (prediction, confidence), label, (height, width) in zip(
            said, batch.label, batch.size.tolist(), strict=True
        ):
            sure = confidence >= self.threshold
            self.reliable_metrics.update(prediction, label[:height, :width].where(sure, IGNORE_INDEX))
        return outputs

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        teacher, reliable = self.teacher_metrics.compute(), self.reliable_metrics.compute()
        self.log("val/teacher_mIoU", teacher["mIoU"], prog_bar=True)
        self._log_subsets("val/teacher_", teacher["IoU"])
        self._log_classes("val/teacher_IoU", teacher["IoU"])
        counted = teacher["confusion"].sum(1)
        self.log("val/pseudo_label_accuracy", reliable["pixel_accuracy"])
        self.log("val/reliable", reliable["confusion"].sum() / counted.sum())
        self._log_classes("val/reliable", reliable["confusion"].sum(1) / counted)
        if self.source_metrics.update_called:
            self.log("val/source_mIoU", self.source_metrics.compute()["mIoU"])
        for metrics in (self.teacher_metrics, self.reliable_metrics, self.source_metrics):
            metrics.reset()
        if not self.trainer.sanity_checking:
            self._warn_of_one_class(teacher["confusion"].sum(0), "validation pixels")

    def _warn_of_one_class(self, counts: Tensor, pixels: str) -> None:
        share, winner = (counts / counts.sum()).max(0)
        if share >= ONE_CLASS_SHARE and not self._told_of_one_class:
            self._told_of_one_class = True
            name = self.label_space.classes[int(winner)]
            warnings.warn(
                f"the teacher calls {float(share):.1%} of the {pixels} {name!r} at step {self.global_step}: its "
                "pseudo-labels teach nothing. Train longer on the source, lower optimizer.lr or method.alpha, or set "
                "loss.ce.class_weights=balanced",
                stacklevel=2,
            )
