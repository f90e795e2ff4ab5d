"""The terms on labelled images: cross-entropy, losses of libraries, and those on prototypes (ProtoSeg, Eq. 11, 12)."""

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.distributed import all_reduce_, mean_over_ranks
from protoseg.functional.contrast import hide
from protoseg.functional.hierarchy import tree_min
from protoseg.functional.precision import at_least_fp32, no_autocast
from protoseg.functional.prototypes import Clustering, pixel_prototype_contrast, pixel_prototype_distance
from protoseg.functional.resize import upsample_logits
from protoseg.losses.term import Step, Term
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError, Rest, Similarities

POOL, SIDE, NOISE = 4, 3, 5e-4  # of RMI: pixels a side of a cell, cells a side of a region, variance added to a cell


def balanced_class_weights(frequencies: Tensor) -> Tensor:
    """Weight of each class 1 / sqrt(its pixel share), with mean 1 over pixels; absent classes get the largest one.

    The square root is between none (rare classes drown) and full inverse frequency (rare classes flood).
    """
    present = frequencies > 0
    weight = frequencies.where(present, 1).rsqrt()
    weight = weight.where(present, weight[present].max() if present.any() else 1.0)
    return weight / (weight * frequencies).sum().clamp_min(1e-12) if present.any() else torch.ones_like(weight)


def hard_pixels(losses: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Online hard example mining: pixels whose true class has probability below ``threshold``, at least ``min_kept``.

    From the cross-entropy per pixel, of any shape (0 at ignored ones, which may fill up ``min_kept``), to a bool mask.
    """
    flat = losses.flatten()
    kth_hardest = flat.topk(min(max(min_kept, 1), flat.numel())).values[-1]
    return (losses >= kth_hardest) | (losses > -torch.log(losses.new_tensor(threshold)))


def near_boundary(label: Tensor, reach: int) -> Tensor:
    """Pixels of ``b H W`` with another class (ignored is none) at most ``reach`` rows and columns away, bool."""
    window = (2 * reach + 1, 1, reach)  # its side, stride and padding
    above_all = label.where(label != IGNORE_INDEX, label.max() + 1)
    return F.max_pool2d(label.float(), *window) > -F.max_pool2d(-above_all.float(), *window)


def missed_share(logits: Tensor, label: Tensor) -> Tensor:
    """1 - recall of each class (of all ranks), fp64 ``c``; 0 if absent. Tian et al., ICRA 2022, arXiv 2106.14917."""
    wrong = label.where(logits.argmax(1) != label, IGNORE_INDEX)
    counts = [(ids + 1).flatten().bincount(minlength=logits.shape[1] + 1)[1:] for ids in (wrong, label)]
    missed, total = all_reduce_(torch.stack(counts).double())
    return missed / total.clamp_min(1)


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    class_weights: Tensor | None = None,
    ohem_threshold: float | None = None,
    ohem_min_kept: int = 100_000,
    all_pixels: bool = False,
    label_smoothing: float | None = None,
    focal_gamma: float | None = None,
    recall: bool = False,
    boundary: Sequence[int] | None = None,
    rest: Rest | None = None,
    parents: Sequence[int] = (),
) -> Tensor:
    """Mean cross-entropy over labelled pixels (of all ranks), each weighted by its class, those of ``rest`` by 1.

    Of logits ``b c h w`` and int64 labels ``b h w``, ``IGNORE_INDEX`` where unlabelled. With ``all_pixels`` the sum is
    divided by the number of pixels, the ignored among them, as in mmsegmentation; the rest as in :class:`CrossEntropy`.
    """
    logits, valid = at_least_fp32(logits), label != IGNORE_INDEX
    of_each = partial(F.cross_entropy, logits, label, reduction="none", ignore_index=IGNORE_INDEX)
    plain = tree_min(logits, label.where(valid, 0), parents, focal_gamma or 0) * valid if parents else of_each()
    losses = plain if label_smoothing is None else of_each(label_smoothing=label_smoothing)
    if focal_gamma is not None and not parents:  # bounded, for at 0 the slope of a power below 1 is infinite
        losses = losses * (-torch.expm1(-plain)).clamp_min(1e-6) ** focal_gamma
    if recall:
        losses = losses * missed_share(logits, label).to(losses.dtype)[label.where(valid, 0)]
    weight = valid.to(losses.dtype)
    if class_weights is not None:
        weight = weight * class_weights.to(losses.dtype)[label.where(valid, 0)]
    if boundary is not None:
        weight = weight.where(~near_boundary(label, boundary[1]), weight * boundary[0])
    if rest is not None:  # its pixels are none of the valid ones: -log of the summed probabilities of its classes
        possible = hide(logits, ~rest.classes[:, :, None, None]).logsumexp(1)
        of_rest = (logits.logsumexp(1) - possible).where(rest.pixels, 0)
        losses, plain, weight = losses + of_rest, plain + of_rest, weight + rest.pixels
    if ohem_threshold is not None:
        weight = weight * hard_pixels(plain.detach(), ohem_threshold, ohem_min_kept)
    return mean_over_ranks((losses * weight).sum(), (torch.ones_like(weight) if all_pixels else weight).sum())


def weighted_cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor, stride: int, align_corners: bool = False, all_pixels: bool = False
) -> Tensor:
    """Mean over labelled pixels (of all ranks) of weight times cross-entropy: a small weight makes a small loss.

    Logits ``b c h w`` are on a grid of ``stride``, labels and weights are ``b H W``; else as ``cross_entropy``.
    """
    full = upsample_logits(at_least_fp32(logits), (label.shape[1], label.shape[2]), stride, align_corners)
    losses = F.cross_entropy(full, label, reduction="none", ignore_index=IGNORE_INDEX)
    return mean_over_ranks((losses * weight).sum(), ((label != IGNORE_INDEX) | all_pixels).sum())


class CrossEntropy(Term):
    """Cross-entropy on the upsampled class logits.

    ``class_weights`` are None, one number per class, or ``"balanced"``: 1 / sqrt of the pixel share in the training
    set. With ``ohem_threshold`` only pixels whose true class has a lower probability are kept, but at least
    ``ohem_min_kept`` of a batch. ``all_pixels`` divides by the number of all pixels, not of the labelled ones. A pixel
    of one of the classes that its image does not annotate has the sum of their probabilities, or, with ``ignore_rest``,
    no loss. Of the target, ``label_smoothing`` is spread over all classes. With p the probability of its class, each
    pixel's loss is multiplied by (1 - p)^``focal_gamma`` (Lin et al., ICCV 2017, arXiv 1708.02002, on softmax), with
    ``recall`` by the share of its class that is missed in the batch (:func:`missed_share`). ``boundary`` is a weight,
    and up to how many pixels from another class it is given. These ``options`` are of :func:`cross_entropy`; in a tree
    it is :func:`tree_min`. Raises ProtosegError: class weights of the wrong form or number, or options of softmax.
    """

    parents: Sequence[int] = ()
    class_weights: Tensor  # None before ``prepare``, unless they are given

    def __init__(
        self,
        weight: float = 1.0,
        class_weights: str | Sequence[float] | None = None,
        ignore_rest: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(weight)
        self.ignore_rest, self.options = ignore_rest, options
        signature(cross_entropy).bind(None, None, None, rest=None, parents=(), **options)  # refuses others at once
        self.needs_frequencies = class_weights == "balanced"
        given = None if self.needs_frequencies or class_weights is None else class_weights
        if isinstance(given, str):
            raise ProtosegError(f"class_weights: expected null, 'balanced' or numbers (one per class), got {given!r}")
        self.register_buffer("class_weights", None if given is None else torch.tensor([float(w) for w in given]))

    def prepare(self, model: Any, label_space: LabelSpace) -> None:
        classes, self.parents = label_space.num_classes, label_space.parents
        if self.parents and any(map(self.options.get, ("ohem_threshold", "label_smoothing", "recall"))):
            raise ProtosegError("hierarchy: expected ohem_threshold, label_smoothing and recall at their defaults")
        if self.class_weights is None:
            self.class_weights = torch.ones(classes)
        if len(self.class_weights) != classes:
            text = f"class_weights: expected null, 'balanced' or {classes} numbers (one per class)"
            raise ProtosegError(f"{text}, got {self.class_weights.tolist()}")

    def set_frequencies(self, frequencies: Tensor) -> None:
        """Make the weights of ``"balanced"`` from the pixel share of each class, ``c``."""
        self.class_weights.copy_(balanced_class_weights(frequencies))

    def forward(self, step: Step) -> Tensor:
        seen = step.labelled
        return self.on_labels(seen.output.logits, seen.label, seen.stride, seen.output.align_corners, seen.rest)

    def on_labels(
        self, logits: Tensor, label: Tensor, stride: int, align_corners: bool = False, rest: Rest | None = None
    ) -> Tensor:
        """The loss of ``b c h w``, of so many pixels per cell, on labels ``b H W``."""
        full = upsample_logits(at_least_fp32(logits), (label.shape[1], label.shape[2]), stride, align_corners)
        rest = None if self.ignore_rest or self.parents else rest
        return cross_entropy(full, label, self.class_weights, rest=rest, parents=self.parents, **self.options)


class AuxiliaryCrossEntropy(CrossEntropy):
    """The same on the auxiliary head's logits (deep supervision; weight 0.4 is the field's habit)."""

    def forward(self, step: Step) -> Tensor:
        seen = step.labelled
        if seen.output.auxiliary is None:
            raise ProtosegError("loss auxiliary: expected an auxiliary head, got none; set auxiliary=… or drop it")
        return self.on_labels(seen.output.auxiliary, seen.label, seen.stride, seen.output.align_corners, seen.rest)


class LogitsLoss(Term):
    """A loss module of a library, or your own, on the upsampled class logits: ``loss(fp32 b c H W, label b H W)``.

    It leaves out pixels of ``IGNORE_INDEX`` itself, and sees those of this process alone. Without a labelled pixel it
    is not asked: the loss is 0. Raises ProtosegError: it gives no scalar.
    """

    def __init__(self, loss: nn.Module, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = loss

    def forward(self, step: Step) -> Tensor:
        seen = step.labelled
        logits, size = seen.output.logits.float(), (seen.label.shape[1], seen.label.shape[2])
        full = upsample_logits(logits, size, seen.stride, seen.output.align_corners)
        if (seen.label == IGNORE_INDEX).all():
            return 0 * full.sum()
        value: Tensor = self.loss(full, seen.label)
        if value.ndim:
            raise ProtosegError(f"loss: expected a scalar of {type(self.loss).__name__}, got {tuple(value.shape)}")
        return value


class RegionMutualInformation(nn.Module):
    """RMI (Zhao et al., NeurIPS 2019, arXiv 1910.12037): the lower bound that stands beside cross-entropy (Eq. 16).

    The labels of a class in a region are a vector, and so are its probabilities. With M the labels' covariance that the
    probabilities do not explain, the loss is ½ log det M / ``SIDE``², counted from its least value (of a class that an
    image lacks; where probabilities are labels at most ½ log 2), summed over classes, the mean over images. Of softmax,
    where the released code has sigmoids; covariances are means, not sums, so that fp32 can add the noise to them.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of ``b c H W`` and int64 ``b H W``, of at least ``SIDE`` cells each way, a scalar in fp32 or better."""
        with no_autocast(logits):
            valid = (label != IGNORE_INDEX).unsqueeze(1)
            probability = at_least_fp32(logits).softmax(1) * valid
            truth = F.one_hot(label.clamp_min(0), logits.shape[1]).movedim(3, 1).to(probability) * valid
            p, y = _regions(probability), _regions(truth)
            noise, n = NOISE * torch.eye(SIDE**2, dtype=p.dtype, device=p.device), p.shape[3]
            both, (of_p, odd) = y @ p.mT / n, torch.linalg.cholesky_ex(p @ p.mT / n + noise)
            unexplained = y @ y.mT / n - both @ torch.cholesky_solve(both.mT, of_p) + noise
            left, odder = torch.linalg.cholesky_ex(unexplained)  # NaN is said where all losses are looked at
            deviation = left.diagonal(dim1=2, dim2=3).where((odd + odder == 0).unsqueeze(2), torch.nan)
            return (deviation / NOISE**0.5).log().sum(2).mean(0).sum() / SIDE**2


def _regions(maps: Tensor) -> Tensor:
    """The cells of every region, less their mean: ``b c H W`` to ``b c SIDE² n``."""
    cells = F.avg_pool2d(maps, POOL, ceil_mode=True)
    vectors = F.unfold(cells.flatten(0, 1).unsqueeze(1), SIDE).unflatten(0, cells.shape[:2])
    return vectors - vectors.mean(3, keepdim=True)


def _prototypes_of(step: Step, term: str) -> tuple[Similarities, Clustering]:
    seen = step.labelled
    if seen.output.similarities is None or seen.clustering is None:
        text = f"loss {term}: expected a head with prototypes, got one without"
        raise ProtosegError(f"{text}; use head=prototype, or loss=parametric")
    return seen.output.similarities, seen.clustering


class PixelPrototypeContrast(Term):
    """PPC: draws a pixel to its own prototype and away from all others; in the paper weight 0.01, temperature 0.1."""

    def __init__(self, weight: float = 0.01, temperature: float = 0.1) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        similarities, clustering = _prototypes_of(step, "ppc")
        return pixel_prototype_contrast(similarities, clustering.target, self.temperature)


class PixelPrototypeDistance(Term):
    """PPD: makes the pixels of one prototype compact; weight 0.001 in the paper."""

    def __init__(self, weight: float = 0.001) -> None:
        super().__init__(weight)

    def forward(self, step: Step) -> Tensor:
        similarities, clustering = _prototypes_of(step, "ppd")
        return pixel_prototype_distance(similarities, clustering.target)
