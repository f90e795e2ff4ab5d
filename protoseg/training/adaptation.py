"""Teacher-student domain adaptation: DACS, DAFormer, HRDA, MIC and PGPC differ in their terms, not in this step."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from protoseg.distributed import all_reduce_, world_size
from protoseg.evaluation.metrics import SegmentationMetrics, scores
from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.resize import image_size, upsample_logits
from protoseg.losses import CrossEntropy, Mixed, Step, Target, Term
from protoseg.models.recompute import unmoved_statistics
from protoseg.nn import EMATeacher, Observation
from protoseg.training.base import SegmentationModule
from protoseg.training.moves import ClassMix, Mixture
from protoseg.types import IGNORE_INDEX, AdaptationBatch, Batch, LabelSpace, ProtosegError, SegOutput

ONE_CLASS_SHARE = 0.99


class AdaptationModule(SegmentationModule):
    """A student learns from labelled source images and from what its own average, the teacher, says of target images.

    A step is a chain of moves, each a short method that a subclass may override: see the source, ask the teacher, mix
    (:class:`protoseg.training.moves.ClassMix`, or what ``mix`` is), see the mixed, sum the terms.

    Without ``terms`` it is the source-only baseline: the target images are not looked at. With terms that work on more
    than the target, the running statistics of BatchNorm are those of the mixed images alone (the released codes of DACS
    and DAFormer take source and mixed images alike), which no gradient depends on.

    Args:
        label_space, losses, options: of :class:`SegmentationModule`; its losses are those on the source images, and its
            terms those of the adaptation (cross-entropy on mixed images, pixel contrast, masked consistency).
        source_terms: further terms on the source images, by name (feature distance).
        alpha: largest momentum of the teacher.
        threshold: confidence from which a pseudo-label is reliable.
        unweighted: what the teacher says as a target is divided by the class weights of the cross-entropy on source
            images (then by its sum). A network that learns with weights w says what is proportional to w p, not to p
            (Elkan, IJCAI 2001): where it doubts it calls too much rare, and labels made of that add to it.
        ignore_top, ignore_bottom: rows of the target images without pseudo-label (the car's bonnet, the border of a
            rectified image; 15 and 120 of Cityscapes' 512 in DAFormer, which gives them the weight 0 instead, so that
            they still count in the mean's number of pixels).
        separate_backward: the source terms' gradients are computed before the mixed images go through the student: the
            same gradients, less memory, unless a term needs the source outputs again.

    Raises ProtosegError: values that make no sense, or as ``SegmentationModule``.
    """

    parts = ("labelled", "mixed", "target")

    def __init__(
        self,
        *,
        label_space: LabelSpace,
        losses: dict[str, Term],
        source_terms: dict[str, Term] | None = None,
        mix: Callable[[Batch, Target, int, float], Mixture] | None = None,
        alpha: float = 0.999,
        threshold: float = 0.968,
        unweighted: bool = False,
        ignore_top: int = 0,
        ignore_bottom: int = 0,
        separate_backward: bool = False,
        **options: Any,
    ) -> None:
        source_terms = source_terms or {}
        self.check_terms([*losses.items(), *source_terms.items()])  # before one takes another's place
        super().__init__(losses={**losses, **source_terms}, label_space=label_space, **options)
        if not 0 < threshold <= 1 or min(ignore_top, ignore_bottom) < 0:
            given = (threshold, ignore_top, ignore_bottom)
            raise ProtosegError(f"method: expected threshold in (0, 1], ignore_top, ignore_bottom from 0, got {given}")
        if separate_backward and self.model.auxiliary is not None:
            wanted = "a model without auxiliary head, whose parameters the second backward would not reach"
            remedy = "set auxiliary=null, or separate_backward=false"
            raise ProtosegError(f"method.separate_backward: expected {wanted}, got one; {remedy}")
        self.mix = mix or ClassMix()
        self._divided_by = _weighted_term(losses) if unweighted else None
        self.teacher = EMATeacher(self.model, alpha)
        self.threshold, self.separate_backward = threshold, separate_backward
        self.ignore_top, self.ignore_bottom = ignore_top, ignore_bottom
        self._told_of_one_class = False
        metrics = (SegmentationMetrics(label_space) for _ in range(3))
        self.teacher_metrics, self.reliable_metrics, self.source_metrics = metrics

    def training_step(self, batch: AdaptationBatch, batch_idx: int) -> dict[str, Any]:
        source, target = batch
        mixes = any(term.needs != ("target",) for term in self.terms.values())  # these make views of their own
        if self.separate_backward and batch_idx % self.trainer.accumulate_grad_batches == 0:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()

        # The statistics that student and teacher will be judged by are those of mixed images, nearer to the target.
        with unmoved_statistics(self.model) if mixes else nullcontext():
            on_source, observations = self.see(source.image, source.label)
        loss, values = self.sum_terms(self.losses, Step(self.model, replace(on_source, rest=source.rest)))
        if not self.terms:
            return self.step_output(loss, values, source.name, observations)
        if self.separate_backward:  # the gradients of the source's loss now; its value is kept, for the sum
            keep = any(term.uses_labelled_graph for term in self.terms.values())
            # Lightning's own backward comes after its autocast; in it, fp32 parts would go backward in half precision.
            with no_autocast(loss):
                self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None, retain_graph=keep)
            loss = loss.detach()

        said = self.ask_teacher(target.image)
        mixture = self.mix(source, said, self.label_space.num_classes, self.threshold)
        on_mixed, more = self.see_mixed(mixture) if mixes else (Step.mixed, [])
        of_terms, more_values = self.sum_terms(self.terms, Step(self.model, on_source, on_mixed, said))
        self._log_step(said)
        observations += more + [o for term in self.terms.values() for o in term.observations]
        shown = {"image": said.image, "mixed": mixture.image, "label": said.label, "confidence": said.confidence}
        picture, files = {key: value[0] for key, value in shown.items()}, [*source.name, *target.name]
        return self.step_output(loss + of_terms, values | more_values, files, observations, picture=picture)

    @torch.no_grad()
    def ask_teacher(self, image: Tensor) -> Target:
        """What the teacher says of target images ``b 3 H W``: its output on its grid, and labels at full resolution.

        Raises ProtosegError for images without a row that counts.
        """
        size = image_size(image)
        if size[0] <= self.ignore_top + self.ignore_bottom:
            got = f"{size[0]} rows of which {self.ignore_top} + {self.ignore_bottom} do not count"
            text = "method.ignore_top, method.ignore_bottom: expected target crops with rows that count"
            raise ProtosegError(f"{text}, got {got}; set both to 0, or data.crop_size higher")
        output: SegOutput = self.teacher(image)
        output = output._replace(logits=self._without_weights(output.logits))
        with no_autocast(output.logits):
            logits = upsample_logits(at_least_fp32(output.logits), size, self.model.stride, output.align_corners)
            confidence, label = logits.softmax(1).max(1)
        sure = (confidence >= self.threshold).to(confidence.dtype).mean()
        quality = all_reduce_(sure) / world_size()  # every rank has as many pixels
        rows = torch.arange(size[0], device=label.device).view(1, -1, 1)
        outside = (rows < self.ignore_top) | (rows >= size[0] - self.ignore_bottom)
        return Target(image, label.masked_fill(outside, IGNORE_INDEX), confidence, quality, output)

    def _without_weights(self, logits: Tensor) -> Tensor:
        """Of the teacher, ``b c h w``, as ``unweighted`` has them."""
        if self._divided_by is None:
            return logits
        term: Any = self.losses[self._divided_by]
        return logits - term.class_weights.log().view(-1, 1, 1)

    def see_mixed(self, mixture: Mixture) -> tuple[Mixed, list[Observation]]:
        """The student's output on the mixed images; sure labels alone move its prototypes."""
        seen, observations = self.see(mixture.image, mixture.label, mixture.reliable)
        return Mixed(**vars(seen), pasted=mixture.pasted, weight=mixture.weight), observations

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        # Lightning clears after training_step; gradients of a separate backward are already there by then.
        if not self.separate_backward or not self.terms:
            optimizer.zero_grad()

    def after_optimizer_step(self) -> None:
        self.teacher.update_parameters(self.model)
        super().after_optimizer_step()

    def _log_step(self, said: Target) -> None:
        self.log("train/quality", said.quality)
        if (self.global_step + 1) % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # Lightning would not write them down
        classes = self.label_space.num_classes
        from_zero = said.label + 1  # ignored pixels are counted as well, and left out
        sure = from_zero[said.confidence >= self.threshold].bincount(minlength=classes + 1)[1:]
        total = from_zero.flatten().bincount(minlength=classes + 1)[1:]
        self._log_classes("train/reliable", sure / total)
        if self.global_step >= self.trainer.max_steps // 10:  # before, the teacher may not know better
            self._warn_of_one_class(total, "target pixels")
        for name, term in self.terms.items():
            for key, value in term.statistics.items():
                log: Any = self._log_classes if value.ndim else self.log
                log(f"{name}/{key}", value)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:  # type: ignore[override]
        if dataloader_idx == 1:
            self._judge(self.source_metrics, self.predictor.predict(self.model, batch.image, batch.size), batch)
            return {}
        outputs = super().validation_step(batch, batch_idx)
        said = self.predictor.reduced(self.teacher.module, batch.image, batch.size, self._labels_of)
        self._judge(self.teacher_metrics, [label for label, _, _ in said], batch)
        for (_, pseudo_label, confidence), label, (h, w) in zip(said, batch.label, batch.size.tolist(), strict=True):
            self.reliable_metrics.update(pseudo_label, label[:h, :w].where(confidence >= self.threshold, IGNORE_INDEX))
        return outputs

    def _labels_of(self, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the teacher's ``b c h w``: what it predicts, the pseudo-label, and how sure that is."""
        confidence, label = probabilities.max(1)
        if self._divided_by is None:
            return label, label, confidence
        confidence, pseudo_label = self._without_weights(probabilities.log()).softmax(1).max(1)
        return label, pseudo_label, confidence

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        teacher, reliable = self.scores_of(self.teacher_metrics), self.reliable_metrics.compute()
        self._log_iou("val/teacher_", teacher)
        counted = teacher["confusion"].sum(1)
        self.log("val/pseudo_label_accuracy", reliable["pixel_accuracy"])
        self.log("val/reliable", reliable["confusion"].sum() / counted.sum())
        self._log_classes("val/reliable", reliable["confusion"].sum(1) / counted)
        if self.source_metrics.update_called:
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            source = scores(self.source_metrics.compute()["confusion"], datamodule.source.unlabelled)
            self.log("val/source_mIoU", source["mIoU"])
        for metrics in (self.teacher_metrics, self.reliable_metrics, self.source_metrics):
            metrics.reset()
        if not self.trainer.sanity_checking:
            self._warn_of_one_class(teacher["confusion"].sum(0), "validation pixels")

    def _warn_of_one_class(self, counts: Tensor, pixels: str) -> None:
        share, winner = (counts / counts.sum()).max(0)
        if share >= ONE_CLASS_SHARE and not self._told_of_one_class:
            self._told_of_one_class = True
            name = self.label_space.classes[int(winner)]
            text = f"the teacher calls {float(share):.1%} of the {pixels} {name!r} at step {self.global_step}"
            remedy = "lower optimizer.lr or method.alpha, or set loss.ce.class_weights=balanced, unweighted=false"
            text += ": its pseudo-labels teach nothing. Train longer on the source"
            warnings.warn(f"{text}, {remedy}", stacklevel=2)


def _weighted_term(losses: dict[str, Term]) -> str:
    """The cross-entropy by whose class weights the teacher's probabilities are divided; ProtosegError without one."""
    got: Any = ", ".join(losses)
    for name, term in losses.items():
        if type(term) is CrossEntropy:
            got = term.class_weights.tolist()
            # Balanced ones are all 1 until the training data are counted.
            if min(got) > 0 and (term.needs_frequencies or len({*got}) > 1):
                return name
    text = "method.unweighted: expected a cross-entropy on the source, with class_weights above 0, not all alike"
    raise ProtosegError(f"{text}, got {got}; set it to false")
