"""Pixel contrast whose anchors are target pixels that the teacher is sure of: PGPC and U2PL."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.distributed import all_reduce_
from protoseg.functional.contrast import entropy, entropy_bounds, info_nce, nearest_prototype, surely_not
from protoseg.functional.prototypes import prototype_sums
from protoseg.functional.sampling import pixel_rows, sample_per_class, take_rows
from protoseg.losses.contrast import ProjectedContrast, class_rows, embed, expect, on_grid, target_pixels
from protoseg.losses.term import Seen, Step, Target
from protoseg.nn import ClassQueues, EMATeacher, Observation, PrototypeMemory
from protoseg.types import IGNORE_INDEX, LabelSpace, SegOutput


class TargetContrast(ProjectedContrast):
    """Anchors from reliable target pixels, balanced over classes; negatives from unreliable ones.

    An unreliable pixel may show one of a few classes, but surely none of those far down the teacher's order, whose rank
    is in ``low_rank <= rank < high_rank`` (0 is the likeliest): it joins their queues, as a negative. Per class there
    are at most ``anchors`` a rank, ``negatives`` (or per anchor, see the subclass), and queues of ``queue_length``, to
    which a step writes ``per_step`` over all ranks. The defaults are U2PL's. Raises ProtosegError: senseless numbers.
    """

    needs = ("mixed", "target")
    uses_labelled_graph = False

    def __init__(
        self,
        weight: float = 0.1,
        temperature: float = 0.5,
        dim: int = 256,
        anchors: int = 256,
        negatives: int = 50,
        low_rank: int = 3,
        high_rank: int = 20,
        queue_length: int = 2048,
        per_step: int = 256,
    ) -> None:
        super().__init__(weight, temperature, dim)
        expect(min(anchors, negatives) >= 1, "anchors and negatives of at least 1", (anchors, negatives))
        expect(1 <= low_rank < high_rank, "1 <= low_rank < high_rank", (low_rank, high_rank))
        self.anchors, self.negatives = anchors, negatives
        self.low_rank, self.high_rank = low_rank, high_rank
        self.queue_length, self.per_step = queue_length, per_step

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        self.unreliable_queue = self._new_queue()

    def _new_queue(self) -> ClassQueues:
        return ClassQueues(self.num_classes, self.queue_length, self.dim, self.per_step)

    @abstractmethod
    def split(self, target: Target) -> tuple[Tensor, Tensor]:
        """Labels of the reliable pixels (``n``, ``IGNORE_INDEX`` elsewhere), and which are unreliable (bool ``n``)."""

    @torch.no_grad()
    def push_unreliable(self, unreliable: Tensor, said: SegOutput, features: Tensor, by: nn.Module) -> None:
        """A sample of the unreliable pixels (bool ``n``) to the queues of all classes that they surely do not show.

        ``said`` is the teacher's output; the projection ``by`` embeds ``features``, ``b D h w``.
        """
        index, valid = sample_per_class((~unreliable).long() * IGNORE_INDEX, 1, self.per_step)
        index, valid = index[0], valid[0]
        embeddings = embed(by, take_rows(features, index))
        member = surely_not(take_rows(said.logits, index), self.low_rank, self.high_rank) & valid.unsqueeze(1)
        self.unreliable_queue.push(embeddings.expand(self.num_classes, -1, -1), member.T)

    def share_per_class(self, label: Tensor, part: Tensor) -> Tensor:
        """Of the pixels of each class, how many are in ``part`` (the same labels or ``IGNORE_INDEX``); ``c``."""
        nothing = torch.empty(len(label), 0, device=label.device)  # to sum: pixels are counted
        counted, total = (prototype_sums(nothing, ids, self.num_classes)[1] for ids in (part, label))
        return counted / total.clamp_min(1)


class PrototypeGuidedContrast(TargetContrast):
    """PGPC (Xiang, Wan and Cao, Scientific Reports 2024, arXiv 2501.09040): contrast with the prototypes of classes.

    The full text of the paper is not at hand. What its abstract and figure captions say: reliable target pixels are
    drawn to class prototypes and away from negatives, unreliable target pixels are made use of without the noise of
    their pseudo-labels, features of a class stay diverse, and nothing is added at inference. All else is our choice,
    and a parameter: the positive is the nearest of K prototypes of the class; negatives come half from the queues of
    other classes' reliable features, half from the class's queue of unreliable ones. (The released code computes
    something else: :class:`protoseg.losses.contrast.PixelToPixelContrast`.)

    For a head with prototypes the positives are that head's own, in the head's own space, without a projection. Else
    the term keeps a memory in its projected space. Either is moved by labelled source and reliable target pixels.
    Queues hold the student's embeddings.

    A target pixel is reliable from the confidence ``reliable``; ``negatives`` come from each of the two kinds of queue,
    shared by the anchors of the class; K and ``momentum`` are of prototypes where the head has none. The ``options`` of
    :class:`TargetContrast` are 128 anchors, ``dim`` 64 and shorter queues unless given.
    """

    def __init__(
        self, *, reliable: float = 0.968, num_prototypes: int = 5, momentum: float = 0.999, **options: Any
    ) -> None:
        own = {"dim": 64, "anchors": 128, "negatives": 128, "queue_length": 1024, "per_step": 64}
        super().__init__(**(own | options))
        expect(0 < reliable <= 1 and num_prototypes >= 1, "0 < reliable <= 1, K >= 1", (reliable, num_prototypes))
        self.reliable, self.num_prototypes, self.momentum = reliable, num_prototypes, momentum

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        shared: PrototypeMemory | None = model.head.memory
        if shared is not None:
            self.dim = shared.prototypes.shape[2]
        super().prepare(model, label_space)
        if shared is not None:
            self.projection = nn.Identity()
        else:
            self.memory = PrototypeMemory(self.num_classes, self.num_prototypes, self.dim, self.momentum)
        self.reliable_queue = self._new_queue()

    def split(self, target: Target) -> tuple[Tensor, Tensor]:
        sure = target.confidence >= self.reliable
        return target.label.where(sure, IGNORE_INDEX), (target.label != IGNORE_INDEX) & ~sure

    def contrast(self, step: Step) -> Tensor:
        target = target_pixels(step.target, step.mixed)
        label, unreliable = self.split(target)
        index, valid = sample_per_class(label, self.num_classes, self.anchors)
        features = step.mixed.output.embeddings
        anchors = embed(self.projection, take_rows(features, index))
        # The student's own embeddings: prototypes follow the student, and negatives that lag behind them (those of the
        # teacher do) are left behind by all classes moving together, until all look one way.
        self.reliable_queue.push(anchors.detach(), valid)
        self.push_unreliable(unreliable, step.target.teacher, features, self.projection)
        drawn = (self.reliable_queue.draw_others(self.negatives), self.unreliable_queue.draw(self.negatives))
        negatives, exist = (torch.cat(parts, 1) for parts in zip(*drawn, strict=True))
        memory = self.memory or step.model.head.memory
        # Copies: prototypes may move between this forward pass and its backward pass.
        prototypes, placed = memory.prototypes.to(anchors.dtype, copy=True), memory.updates > 0
        valid_anchor = valid & placed.any(1, keepdim=True)
        if self.memory is not None:
            on_target = (anchors.detach(), index, valid)
            self.observations = [self._observe(self.memory, step.labelled, step.mixed, *on_target)]
        self.statistics = {
            "anchors": valid_anchor.sum().float(),
            "reliable": self.share_per_class(target.label, label),
            "reliable_queue": self.reliable_queue.fill.float(),
            "unreliable_queue": self.unreliable_queue.fill.float(),
        }
        positive = nearest_prototype(anchors, prototypes, placed)
        negative = anchors @ negatives.to(anchors.dtype).transpose(1, 2)
        return info_nce(positive, negative, valid_anchor, exist.unsqueeze(1), self.temperature)

    @torch.no_grad()
    def _observe(
        self, memory: PrototypeMemory, source: Seen, mixed: Seen, anchors: Tensor, index: Tensor, valid: Tensor
    ) -> Observation:
        """The anchors, and as many labelled source pixels, for the term's own memory."""
        source_index, source_valid = sample_per_class(on_grid(source.label, source), self.num_classes, self.anchors)
        on_source = embed(self.projection, take_rows(source.output.embeddings, source_index))
        embeddings = torch.cat([on_source.flatten(0, 1), anchors.flatten(0, 1)])
        label = torch.cat([class_rows(source_valid), class_rows(valid)])
        drawn = ((source, source_index), (mixed, index))
        predicted = torch.cat([take_rows(seen.output.logits, rows.flatten()) for seen, rows in drawn]).argmax(1)
        own = memory.similarity(embeddings).own(label)
        return Observation(memory, embeddings, own, label, predicted == label, memory.balance(own, label).member)


class UnreliablePixelContrast(TargetContrast):
    """U2PL (Wang et al., CVPR 2022, arXiv 2203.03884): "using unreliable pseudo-labels" as negatives.

    Reliable are the target pixels of the lowest entropy, unreliable those of the highest. The positive of a class is
    the teacher's mean over its reliable pixels. Two things differ from the released code: its anchors are labelled
    pixels too, of which the teacher here says nothing; and its share of pixels falls to 0 over the training. Queues and
    means hold embeddings of the teacher's features by the averaged projection.

    A reliable pixel may be an anchor above the probability ``confident`` (paper: 0.3); ``entropy_share`` of the pixels
    are reliable, and as many unreliable (released code: 0.2); ``alpha`` is the largest momentum of the averaged
    projection, as of the teacher. ``options`` are of :class:`TargetContrast`; the paper has 50 ``negatives`` an anchor.
    """

    def __init__(
        self, *, confident: float = 0.3, entropy_share: float = 0.2, alpha: float = 0.999, **options: Any
    ) -> None:
        super().__init__(**options)
        wanted = "0 <= confident < 1, 0 < entropy_share <= 0.5"
        expect(0 <= confident < 1 and 0 < entropy_share <= 0.5, wanted, (confident, entropy_share))
        self.confident, self.entropy_share, self.alpha = confident, entropy_share, alpha

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        super().prepare(model, label_space)
        self.averaged = EMATeacher(self.projection, self.alpha)

    def after_optimizer_step(self) -> None:
        self.averaged.update_parameters(self.projection)

    def split(self, target: Target) -> tuple[Tensor, Tensor]:
        seen = target.label != IGNORE_INDEX
        values = entropy(pixel_rows(target.teacher.logits))
        low, high = entropy_bounds(values, seen, self.entropy_share)
        return target.label.where(values <= low, IGNORE_INDEX), seen & (values >= high)

    def contrast(self, step: Step) -> Tensor:
        target, said = target_pixels(step.target, step.mixed), step.target.teacher
        label, unreliable = self.split(target)
        with torch.no_grad():  # mean directions of the teacher's embeddings over all ranks
            known = embed(self.averaged, pixel_rows(said.embeddings))
            sums, counts = (all_reduce_(x) for x in prototype_sums(known, label, self.num_classes))
            means, present = F.normalize(sums, dim=1), counts > 0
        anchor_label = label.where(target.confidence > self.confident, IGNORE_INDEX)
        index, valid = sample_per_class(anchor_label, self.num_classes, self.anchors)
        anchors = embed(self.projection, take_rows(step.mixed.output.embeddings, index))
        self.push_unreliable(unreliable, said, said.embeddings, self.averaged)
        negatives, exist = self.unreliable_queue.draw(self.anchors, self.negatives)
        valid = valid & present.unsqueeze(1)
        self.statistics = {
            "anchors": valid.sum().float(),
            "reliable": self.share_per_class(target.label, label),
            "unreliable_queue": self.unreliable_queue.fill.float(),
        }
        positive = (anchors @ means.to(anchors.dtype).unsqueeze(2)).squeeze(2)
        negative = torch.einsum("cad,camd->cam", anchors, negatives.to(anchors.dtype))
        return info_nce(positive, negative, valid, exist, self.temperature)
