"""Terms of DACS (mixed images), DAFormer (feature distance), HRDA (detail crop), MIC (masked images) and UniMatch."""

from collections.abc import Sequence
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.distributed import mean_over_ranks
from protoseg.functional.mixing import mask_image, random_patch_mask, strong_transform
from protoseg.functional.precision import at_least_fp32
from protoseg.functional.resize import image_size, majority_label
from protoseg.losses.segmentation import CrossEntropy, weighted_cross_entropy
from protoseg.losses.term import Step, Term
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError, SegOutput


class MixedCrossEntropy(Term):
    """Cross-entropy on the mixed images: pasted pixels count 1, target pixels as much as the pseudo-labels' quality.

    DACS (Tranheden et al., arXiv 2007.08702), Sec. 3.2; weights of ``Mixed.weight``. ``class_weights`` (None in the
    paper) are a further factor for every pixel; they and ``all_pixels`` as of :class:`CrossEntropy`.
    """

    needs = ("mixed",)
    uses_labelled_graph = False

    def __init__(
        self, weight: float = 1.0, class_weights: str | Sequence[float] | None = None, all_pixels: bool = False
    ) -> None:
        super().__init__(weight)
        self.of_class, self.all_pixels = CrossEntropy(class_weights=class_weights), all_pixels

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        self.of_class.prepare(model, label_space)

    def forward(self, step: Step) -> Tensor:
        mixed, weights = step.mixed, self.of_class.class_weights
        of_class = weights[mixed.label.where(mixed.label != IGNORE_INDEX, 0)]
        how = (mixed.stride, mixed.output.align_corners, self.all_pixels)
        return weighted_cross_entropy(mixed.output.logits, mixed.label, mixed.weight * of_class, *how)


class FeatureDistance(Term):
    """Keeps the encoder's features of things near those it had at the start, when it knew ImageNet.

    DAFormer (arXiv 2111.14887, Sec. 3.3): mean, over the cells of the coarsest map that one thing class covers by at
    least ``min_ratio``, of the Euclidean distance between the features of the source image by the student and by a
    copy of its initial encoder (where weights are frozen, these). Weight 0.005 and ``min_ratio`` 0.75 are the paper's;
    ``classes`` names those that count (default: the label space's things). Raises ProtosegError: it lacks them.
    """

    things: Tensor

    def __init__(self, weight: float = 0.005, min_ratio: float = 0.75, classes: Sequence[str] | None = None) -> None:
        super().__init__(weight)
        self.min_ratio, self.classes = min_ratio, classes

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        chosen = label_space.things if self.classes is None else self.classes
        things = label_space.ids(chosen, "feature distance, classes (else things: [NAME, …] of classes.yaml)")
        # What never learns is the student's own, and stands in memory and in checkpoints once.
        frozen = {name: each for name, each in model.encoder.named_parameters() if not each.requires_grad}
        self.reference = deepcopy(model.encoder, {id(each): each for each in frozen.values()}).requires_grad_(False)
        self.shared = [f"reference.{name}" for name in frozen]
        self.register_state_dict_post_hook(_leave_out_shared)
        self.register_load_state_dict_pre_hook(_put_back_shared)
        # One more entry, never counted, for cells without a class.
        is_thing = torch.zeros(label_space.num_classes + 1, dtype=torch.bool)
        is_thing[things] = True
        self.register_buffer("things", is_thing, persistent=False)

    def forward(self, step: Step) -> Tensor:
        seen: Any = step.labelled
        reference = self.reference.eval() if self.reference.training else self.reference
        with torch.no_grad():
            theirs = step.model.encoder_maps(seen.image, reference)[-1]
        distance = at_least_fp32(seen.output.features[-1] - theirs).norm(dim=1)
        classes = len(self.things) - 1
        cells = majority_label(seen.label, step.model.feature_strides[-1], self.min_ratio, classes)
        counted = self.things[cells.where(cells != IGNORE_INDEX, classes)]
        return mean_over_ranks((distance * counted).sum(), counted.sum())


def _leave_out_shared(term: Any, state: dict[str, Tensor], prefix: str, *more: Any) -> None:
    for name in term.shared:
        del state[prefix + name]


def _put_back_shared(term: Any, state: dict[str, Tensor], prefix: str, *more: Any) -> None:
    state |= {prefix + name: term.get_parameter(name) for name in term.shared}


def on_detail(output: SegOutput, *maps: Tensor) -> list[Tensor]:
    """Logits of the detail crop, and of maps ``b H W`` what lies under it; ProtosegError: no crop, or not training."""
    if output.detail is None:
        raise ProtosegError("detail: expected a model with a detail crop, got none; set segmentor=hrda, or drop it")
    logits, (top, left, height, width) = output.detail
    return [logits, *(pixels[:, top : top + height, left : left + width] for pixels in maps)]


class DetailCrossEntropy(CrossEntropy):
    """Cross-entropy of the detail crop of labelled images (HRDA, arXiv 2204.13132, Sec. 3.3).

    In the paper its weight is lambda_d = 0.1, and that of the cross-entropy on the fused logits 1 - lambda_d.
    """

    def forward(self, step: Step) -> Tensor:
        seen, rest = step.labelled, step.labelled.rest
        logits, label = on_detail(seen.output, seen.label)
        if rest is not None:
            rest = rest._replace(pixels=on_detail(seen.output, rest.pixels)[1])
        return self.on_labels(logits, label, seen.stride, rest=rest)


class MixedDetailCrossEntropy(Term):
    """The same on the mixed images with their pixel weights: 0.1 of it and 0.9 of the mixed cross-entropy."""

    needs = ("mixed",)
    uses_labelled_graph = False

    def __init__(self, weight: float = 1.0, all_pixels: bool = False) -> None:
        super().__init__(weight)
        self.all_pixels = all_pixels

    def forward(self, step: Step) -> Tensor:
        logits, label, weight = on_detail(step.mixed.output, step.mixed.label, step.mixed.weight)
        return weighted_cross_entropy(logits, label, weight, step.mixed.stride, all_pixels=self.all_pixels)


class MaskedImageConsistency(Term):
    """Cross-entropy of the student on masked target images against the pseudo-labels (MIC, arXiv 2212.01322, Eq. 8).

    The student must tell from the context what the teacher sees in the hidden patches: the share ``ratio`` (0.7 in the
    paper) of squares of ``block_size`` (64) pixels. Images get colour jitter and blur before, as in the released code
    (``colours``, of :func:`protoseg.functional.mixing.strong_transform`). Every pixel weighs as much as the
    pseudo-labels' quality; those without a pseudo-label do not count. Of a model with a detail crop (HRDA), that has
    ``detail_weight``, and the fused logits the rest; ``all_pixels`` as of :class:`protoseg.losses.CrossEntropy`.
    BatchNorm's running statistics do not move, for no masked image is ever judged; in the released code they do.

    Raises ProtosegError: a ratio outside [0, 1] or a block size below 1.
    """

    needs = ("target",)
    uses_labelled_graph = False

    def __init__(
        self,
        weight: float = 1.0,
        block_size: int = 64,
        ratio: float = 0.7,
        detail_weight: float = 0.1,
        all_pixels: bool = False,
        **colours: Any,
    ) -> None:
        super().__init__(weight)
        random_patch_mask(0, (1, 1), block_size, ratio)  # refuses wrong settings now, not at the first step
        self.block_size, self.ratio, self.detail_weight = block_size, ratio, detail_weight
        signature(strong_transform).bind(None, **colours)
        self.colours, self.all_pixels = colours, all_pixels

    def forward(self, step: Step) -> Tensor:
        student, image, label = step.model, step.target.image, step.target.label
        visible = random_patch_mask(len(image), image_size(image), self.block_size, self.ratio, image.device)
        output = student.perturbed(mask_image(strong_transform(image, **self.colours), visible, student.mean))
        weight = step.target.quality.expand(label.shape)
        how = (student.stride, output.align_corners, self.all_pixels)
        loss = weighted_cross_entropy(output.logits, label, weight, *how)
        if output.detail is None:
            return loss
        logits, label, weight = on_detail(output, label, weight)
        detail = weighted_cross_entropy(logits, label, weight, student.stride, all_pixels=self.all_pixels)
        return (1 - self.detail_weight) * loss + self.detail_weight * detail


class StrongViews(CrossEntropy):
    """Cross-entropy on strong views of the target images against what the teacher is sure of in the weak ones.

    Each of the ``views`` is what ``mix`` makes of them (:class:`protoseg.training.moves.CutMix`); pixels of a lower
    confidence than ``threshold`` have no loss in the mean over all. ``weak`` (UniMatch, Yang et al., CVPR 2023, arXiv
    2208.09910): half of the loss is that of the weak images without half of the channels of each of the encoder's maps.
    ``in_turn`` (UniMatch V2, arXiv 2410.10777): of half of the images, views lack in turn half of the channels and the
    others. BatchNorm's running statistics do not move. ``of``: of :class:`CrossEntropy`.
    """

    needs = ("target",)
    uses_labelled_graph = False

    def __init__(
        self, mix: Any, views: int = 2, threshold: float = 0.95, weak: bool = False, in_turn: bool = False, **of: Any
    ) -> None:
        super().__init__(all_pixels=True, **of)
        self.mix, self.views, self.threshold = mix, views, threshold
        self.weak, self.in_turn = weak, in_turn

    def forward(self, step: Step) -> Tensor:
        model, target = step.model, step.target
        views = [self.mix(step.labelled, target, model.num_classes, self.threshold) for _ in range(self.views)]
        image, label = torch.cat([view.image for view in views]), torch.cat([view.reliable for view in views])
        strong: SegOutput = model.perturbed(image, self._drop_in_turn if self.in_turn else None)
        loss = self.on_labels(strong.logits, label, model.stride, strong.align_corners)
        if not self.weak:
            return loss
        weak: SegOutput = model.perturbed(target.image, F.dropout2d)
        sure = target.label.where(target.confidence >= self.threshold, IGNORE_INDEX)
        return (loss + self.on_labels(weak.logits, sure, model.stride, weak.align_corners)) / 2

    def _drop_in_turn(self, feature: Tensor) -> Tensor:
        images = len(feature) // self.views
        factor = F.dropout2d(torch.ones_like(feature[:images, :, :1, :1]))  # 0 or 2
        factor = factor.where(torch.rand(images, 1, 1, 1, device=feature.device) < 0.5, 1)
        return feature * torch.cat([factor if view % 2 else 2 - factor for view in range(self.views)])
