"""What ``python -m benchmarks.gain`` changes in the pixel contrast, one thing at a time, and what it watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.functional.contrast import info_nce, nearest_prototype
from protoseg.functional.resize import upsample_logits
from protoseg.functional.sampling import sample_per_class, take_rows
from protoseg.losses.contrast import class_rows, embed, on_grid, target_label, target_pixels
from protoseg.losses.contrast_target import PrototypeGuidedContrast
from protoseg.losses.term import Seen, Step
from protoseg.nn import EMATeacher, Observation
from protoseg.training.adaptation import AdaptationModule
from protoseg.types import IGNORE_INDEX, LabelSpace, SegOutput


class VariantContrast(PrototypeGuidedContrast):
    """``contrast=pgpc`` with other anchors, negatives, features or prototypes; without options it is the same.

    Args:
        anchor_classes: names of the only classes with anchors; None: all.
        anchors_at: ``anywhere``; ``borders``: cells with another pseudo-class beside them; ``doubtful``: cells whose
            confidence is below ``doubt``.
        negatives_from: of ``reliable``, ``unreliable`` and ``prototypes`` (of all other classes).
        rank_shares: of the number of classes, in place of ``low_rank`` and ``high_rank``, which then follow it.
        source_anchors: labelled source pixels are anchors too, as many.
        features: ``decoder``, or the encoder's map of that index (0: finest, -1: coarsest).
        moved_by: of ``source`` and ``target``, whose pixels move the prototypes.
        queues_of: ``student`` or ``teacher``, whose embeddings of the mixed or target images the queues hold.
        ramp: steps in which the weight grows from 0.
        options: of the base.
    """

    steps: Tensor
    chosen: Tensor
    uses_labelled_graph = True

    def __init__(
        self,
        *,
        anchor_classes: Sequence[str] | None = None,
        anchors_at: str = "anywhere",
        doubt: float = 0.9,
        negatives_from: Sequence[str] = ("reliable", "unreliable"),
        rank_shares: Sequence[float] | None = None,
        source_anchors: bool = False,
        features: str | int = "decoder",
        moved_by: Sequence[str] = ("source", "target"),
        queues_of: str = "student",
        ramp: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.anchor_classes, self.anchors_at, self.doubt = anchor_classes, anchors_at, doubt
        self.negatives_from, self.rank_shares = tuple(negatives_from), rank_shares
        self.source_anchors, self.features, self.moved_by = source_anchors, features, tuple(moved_by)
        self.queues_of, self.ramp = queues_of, ramp
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        if self.rank_shares is not None:
            self.low_rank, self.high_rank = (round(share * self.num_classes) for share in self.rank_shares)
        if self.features != "decoder":
            channels, self.own_stride = model.encoder.channels[self.features], model.feature_strides[self.features]
            self.projection = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, self.dim))
        if self.queues_of == "teacher":
            self.averaged = EMATeacher(self.projection, 0.99)
        self.register_buffer("chosen", torch.ones(self.num_classes + 1, dtype=torch.bool), persistent=False)
        if self.anchor_classes is not None:
            self.chosen.zero_()
            self.chosen[label_space.ids(self.anchor_classes, "contrast.anchor_classes")] = True

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if self.queues_of == "teacher":
            self.averaged.update_parameters(self.projection)
        self.steps += 1

    def maps(self, output: SegOutput, stride: int) -> Tensor:
        """What is contrasted, ``b D h w`` on the grid of the logits."""
        if self.features == "decoder":
            return output.embeddings
        grid = (output.logits.shape[2], output.logits.shape[3])
        feature = output.features[self.features]  # type: ignore[index]
        ratio = self.own_stride // stride
        return upsample_logits(feature, grid, ratio) if ratio > 1 else F.adaptive_avg_pool2d(feature, grid)

    def anchor_label(self, label: Tensor, confidence: Tensor, step: Step) -> Tensor:
        """Labels ``n`` of the cells that may be anchors, ``IGNORE_INDEX`` elsewhere."""
        kept = self.chosen[label]
        if self.anchors_at == "doubtful":
            kept = kept & (confidence < self.doubt)
        if self.anchors_at == "borders":
            kept = kept & borders(step)
        return label.where(kept, IGNORE_INDEX)

    def contrast(self, step: Step) -> Tensor:
        target = target_pixels(step.target, step.mixed)
        label, unreliable = self.split(target)
        features = self.maps(step.mixed.output, step.mixed.stride)
        index, valid = sample_per_class(
            self.anchor_label(label, target.confidence, step), self.num_classes, self.anchors
        )
        anchors = embed(self.projection, take_rows(features, index))
        self.fill_queues(label, unreliable, features, anchors, (index, valid), step)
        memory = self.memory or step.model.head.memory
        prototypes, placed = memory.prototypes.to(anchors.dtype, copy=True), memory.updates > 0
        negatives, exist = self.drawn(prototypes, placed)
        if self.memory is not None:
            self.observations = self.observed(step, anchors.detach(), index, valid)
        everything, exists = (anchors, valid)
        if self.source_anchors:
            more, more_exist = self.source_pixels(step)
            everything, exists = torch.cat([anchors, more], 1), torch.cat([valid, more_exist], 1)
        exists = exists & placed.any(1, keepdim=True)
        self.statistics = {
            "anchors": exists.sum().float(),
            "reliable": self.share_per_class(target.label, label),
            "reliable_queue": self.reliable_queue.fill.float(),
            "unreliable_queue": self.unreliable_queue.fill.float(),
        }
        positive = nearest_prototype(everything, prototypes, placed)
        negative = everything @ negatives.to(anchors.dtype).transpose(1, 2)
        loss = info_nce(positive, negative, exists, exist.unsqueeze(1), self.temperature)
        return loss * (self.steps / self.ramp).clamp_max(1) if self.ramp else loss

    def fill_queues(
        self,
        label: Tensor,
        unreliable: Tensor,
        features: Tensor,
        anchors: Tensor,
        drawn: tuple[Tensor, Tensor],
        step: Step,
    ) -> None:
        """A sample of all reliable pixels, whichever are anchors, and of the unreliable ones."""
        by: nn.Module = self.projection
        if self.queues_of == "teacher":
            features, by = self.maps(step.target.teacher, step.mixed.stride), self.averaged
        elif self.anchor_classes is None and self.anchors_at == "anywhere":
            self.reliable_queue.push(anchors.detach(), drawn[1])
            self.push_unreliable(unreliable, step.target.teacher, features, by)
            return
        with torch.no_grad():
            index, valid = sample_per_class(label, self.num_classes, self.per_step)
            self.reliable_queue.push(embed(by, take_rows(features, index)), valid)
        self.push_unreliable(unreliable, step.target.teacher, features, by)

    def source_pixels(self, step: Step) -> tuple[Tensor, Tensor]:
        """Embeddings of labelled source pixels, ``c a d``, and which exist."""
        label = on_grid(step.labelled.label, step.labelled)
        index, valid = sample_per_class(label.where(self.chosen[label], IGNORE_INDEX), self.num_classes, self.anchors)
        return embed(self.projection, take_rows(self.maps(step.labelled.output, step.labelled.stride), index)), valid

    def drawn(self, prototypes: Tensor, placed: Tensor) -> tuple[Tensor, Tensor]:
        """Negatives of each class, ``c m d``, and which exist."""
        parts = []
        if "reliable" in self.negatives_from:
            parts.append(self.reliable_queue.draw_others(self.negatives))
        if "unreliable" in self.negatives_from:
            parts.append(self.unreliable_queue.draw(self.negatives))
        if "prototypes" in self.negatives_from:
            classes, k, d = prototypes.shape
            other = ~torch.eye(classes, dtype=torch.bool, device=prototypes.device)
            rows = prototypes.view(1, classes * k, d).expand(classes, -1, -1)
            parts.append((rows, (other.unsqueeze(2) & placed.unsqueeze(0)).flatten(1)))
        embeddings, exist = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        return embeddings, exist

    @torch.no_grad()
    def observed(self, step: Step, anchors: Tensor, index: Tensor, valid: Tensor) -> list[Observation]:
        """Pixels for the term's own prototypes: of the source, of the target, or of both."""
        parts: list[tuple[Seen, Tensor, Tensor, Tensor]] = []
        if "source" in self.moved_by:
            label = on_grid(step.labelled.label, step.labelled)
            source_index, source_valid = sample_per_class(label, self.num_classes, self.anchors)
            rows = embed(
                self.projection, take_rows(self.maps(step.labelled.output, step.labelled.stride), source_index)
            )
            parts.append((step.labelled, source_index, source_valid, rows))
        if "target" in self.moved_by:
            parts.append((step.mixed, index, valid, anchors))
        embeddings = torch.cat([rows.flatten(0, 1) for *_, rows in parts])
        label = torch.cat([class_rows(exists) for _, _, exists, _ in parts])
        logits = [take_rows(seen.output.logits, rows.flatten()) for seen, rows, _, _ in parts]
        assert self.memory is not None
        own = self.memory.similarity(embeddings).own(label)
        right = torch.cat(logits).argmax(1) == label
        return [Observation(self.memory, embeddings, own, label, right, self.memory.balance(own, label).member)]


def borders(step: Step) -> Tensor:
    """Cells with another class within one cell, bool ``n``, of the pseudo-labels as the mixed images show them."""
    height, width = step.mixed.output.logits.shape[2:]
    label = on_grid(target_label(step.target, step.mixed), step.mixed)
    label = label.view(-1, 1, height, width).float()
    most, least = F.max_pool2d(label, 3, 1, 1), -F.max_pool2d(-label, 3, 1, 1)
    return (most != least).flatten()


class Watched(AdaptationModule):
    """Logs, at the steps that are logged, how each term on mixed images pulls at the encoder's weights.

    ``pull/NAME`` is the norm of its gradient, ``angle/NAME`` the cosine to that of the mixed images' cross-entropy
    (1: the same way).
    """

    def sum_terms(self, terms: Any, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, values = super().sum_terms(terms, step)
        wanted = terms is self.terms and not (self.global_step + 1) % self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if wanted and (contrast := [name for name in terms if hasattr(terms[name], "temperature")]):
            at = [weight for weight in step.model.encoder.parameters() if weight.requires_grad]
            pull = {name: self._pull(terms[name], step, at) for name in {"mixed", *contrast} & set(terms)}
            for name, gradient in pull.items():
                self.log(f"pull/{name}", gradient.norm())
                self.log(f"angle/{name}", F.cosine_similarity(gradient, pull["mixed"], 0))
        return loss, values

    @staticmethod
    def _pull(term: Any, step: Step, at: list[nn.Parameter]) -> Tensor:
        """The gradient by ``at``, flat, of a term that forgets having been asked: on copies of its buffers."""
        owned = [(module, dict(module._buffers)) for module in term.modules()]
        kept = term.observations, term.statistics
        try:
            for module, buffers in owned:
                module._buffers.update({name: None if x is None else x.clone() for name, x in buffers.items()})
            with torch.random.fork_rng():
                value = term.weight * term(step)
            gradients = torch.autograd.grad(value, at, retain_graph=True, materialize_grads=True)
        finally:
            for module, buffers in owned:
                module._buffers.update(buffers)
            term.observations, term.statistics = kept
        return torch.cat([gradient.flatten() for gradient in gradients])
