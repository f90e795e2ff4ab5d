"""Linear discriminant analysis of frozen maps: what is summed over training images, and a new class's place in it.

Classes share one covariance (Fisher 1936), so in the space in which it is the identity a pixel's class is that of the
nearest mean. The mean of a class known from few images is uncertain: it is drawn to the middle of the others, in each
direction by as much as images differ there (empirical Bayes; as in probabilistic LDA, Ioffe, ECCV 2006). So few images
use few directions, and many use all, with no setting.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.types import ProtosegError

SHRINKAGE = 0.3  # of the correlations of channels to none: 0.1 and 0.6 were within 3 points of IoU on CamVid
COVERAGE = 0.9  # of label sets
SURE = 16.0  # log-odds of a probability; nearer to 1 fp32 has few, and a mean would be of these alone
MIN_CELLS = 20  # an image says how a class differs between images where it has so many of its cells


class Moments(NamedTuple):
    """Sums over pixels in fp64; those of parts, added up, are those of the whole (``a.plus(b)``)."""

    counts: Tensor  # pixels of each class, ``c``
    sums: Tensor  # ``c d``
    products: Tensor  # over pixels of ``x x^T``, ``d d``
    images: Tensor  # images that have ``MIN_CELLS`` of a class, ``c``
    image_sums: Tensor  # of their means, ``c d``
    image_products: Tensor  # ``d d``

    def plus(self, other: "Moments") -> "Moments":
        return Moments(*(one + two for one, two in zip(self, other, strict=True)))


def moments(features: Tensor, label: Tensor, num_classes: int) -> Moments:
    """Of the pixels of one image, ``n d``, with labels int64 ``n``; those below 0 take no part."""
    x, label = features[label >= 0].double(), label[label >= 0]
    counts = torch.bincount(label, minlength=num_classes).double()
    sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, label, x)
    seen = counts >= MIN_CELLS
    means = torch.where(seen[:, None], sums / counts.clamp_min(1)[:, None], 0)
    return Moments(counts, sums, x.T @ x, seen.double(), means, means.T @ means)


class Statistics(NamedTuple):
    """Of a network's maps; ``r`` means, each of a class, in the space in which classes have covariance one."""

    factor: Tensor  # lower triangle, row by row, of the Cholesky factor of the shrunk correlations, ``d (d+1) / 2``
    scale: Tensor  # standard deviation of each channel within the classes, ``d``
    images: Tensor  # variance of a class's mean between images, ``d``
    means: Tensor  # ``r d``
    classes: Tensor  # the class of each mean, int64 ``r``
    taught: Tensor  # whether it was added after the training, bool ``r``
    slope: Tensor  # ``()`` or ``2``, and, by class, ``c``: log-odds that a pixel is right are slope * those of its
    bias: Tensor  # softmax probability, and their mean over the image, + its class's bias: :func:`class_calibration`
    sets: Tensor | None = None  # softmax probability from which a class may be a pixel's, `c`: :func:`set_thresholds`

    def checked(self, num_classes: int) -> "Statistics":
        """Itself; raises ValueError where its parts do not fit together, as of a damaged file."""
        (r, d), ids = self.means.shape, self.classes
        slopes = (2,) if self.slope.ndim else ()
        sizes = [(d * (d + 1) // 2,), (d,), (d,), (r, d), (r,), (r,), slopes, (num_classes,), (num_classes,)]
        parts = [*self[:8], self.bias if self.sets is None else self.sets]
        fits = [tuple(part.shape) for part in parts] == sizes
        fits &= all(part.is_floating_point() and bool(part.isfinite().all()) for part in (*parts[:4], *parts[6:]))
        fits &= (ids.dtype, self.taught.dtype) == (torch.int64, torch.bool) and not bool(self.taught.all())
        fits = fits and bool((self.scale > 0).all() and (self.images >= 0).all())
        if not fits or ids.min() < 0 or ids.max() >= num_classes:
            raise ValueError("parts that do not fit together")
        return self

    def lower(self) -> Tensor:
        """The factor as a matrix ``d d``, fp64."""
        d = len(self.scale)
        full = torch.zeros(d, d, dtype=torch.float64, device=self.factor.device)
        rows, columns = torch.tril_indices(d, d)
        full[rows, columns] = self.factor.double()
        return full

    def whitened(self, features: Tensor) -> Tensor:
        """Channels ``n d`` in the space of the means, fp64."""
        return torch.linalg.solve_triangular(self.lower(), (features.double() / self.scale).T, upper=False).T

    def with_taught(self, means: Sequence[Tensor], classes: Sequence[int], num_classes: int) -> "Statistics":
        """With further means, each ``d``, of taught classes; a new one has the mean bias, and is in every label set."""
        more = num_classes - len(self.bias)
        return self._replace(
            means=torch.cat([self.means, *(mean[None] for mean in means)]),
            classes=torch.cat([self.classes, torch.tensor([*classes], dtype=torch.int64)]),
            taught=F.pad(self.taught, (0, len(classes)), value=True),
            bias=torch.cat([self.bias, self.bias.mean().expand(more)]),
            sets=None if self.sets is None else F.pad(self.sets, (0, more)),
        )

    def linear(self) -> tuple[Tensor, Tensor]:
        """Scores of the means are ``x @ weight.T + bias``: ``r d`` and ``r``, fp32."""
        means = self.means.double()
        weight = torch.linalg.solve_triangular(self.lower().T, means.T, upper=True).T / self.scale
        return weight.float(), (-means.square().sum(1) / 2).float()


def statistics(total: Moments, calibration: tuple[Tensor, Tensor], shrinkage: float = SHRINKAGE) -> Statistics:
    """Means and the shared covariance, with the slope and biases of :func:`class_calibration`.

    Raises ProtosegError: fewer than two classes, or no two images of one.
    """
    there = total.counts > 0
    repeats = (total.images - 1).clamp_min(0).sum()
    if there.sum() < 2 or repeats == 0:
        text = "statistics: expected images that show two classes or more, and one of them twice"
        raise ProtosegError(f"{text}, got {int(there.sum())} classes: give more training images")
    means = total.sums / total.counts.clamp_min(1)[:, None]
    within = (total.products - means.T @ total.sums) / total.counts.sum()
    variance, power = within.diagonal(), total.products.diagonal() / total.counts.sum()
    scale = torch.where(variance > 1e-10 * power, variance.clamp_min(0).sqrt(), 1)  # a constant channel says nothing
    correlation = (1 - shrinkage) * within / scale / scale[:, None]
    lower = torch.linalg.cholesky(correlation + shrinkage * torch.eye(len(scale), dtype=correlation.dtype))
    image_means = total.image_sums / total.images.clamp_min(1)[:, None]
    between = (total.image_products - image_means.T @ total.image_sums) / repeats / scale / scale[:, None]
    half = torch.linalg.solve_triangular(lower, between, upper=False)
    images = torch.linalg.solve_triangular(lower, half.T, upper=False).diagonal().clamp_min(0)
    rows, columns = torch.tril_indices(len(scale), len(scale))
    placed = torch.linalg.solve_triangular(lower, (means[there] / scale).T, upper=False).T
    classes = there.nonzero().flatten()
    values = (lower[rows, columns].float(), scale.float(), images.float(), placed.float().contiguous())
    return Statistics(*values, classes, torch.zeros_like(classes, dtype=torch.bool), *calibration)


def class_calibration(log_odds: Tensor, predicted: Tensor, right: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Slope ``()`` and biases ``c``, fp32, by logistic regression: Platt scaling with a bias for each class.

    A network errs more in some classes than in others where it is equally sure, and its softmax does not say so. Of
    pixels the log-odds of the largest probability, ``n``, the class that has it, int64 ``n``, and whether it is right.
    Classes that are never predicted have the mean of the others' biases. Log-odds may be ``n 2``, with the mean of the
    pixel's image, which tells of bad light: then slopes are ``2``.
    """
    x, target = log_odds.double().cpu().view(len(log_odds), -1), right.double().cpu()
    slope = torch.ones(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, bias], max_iter=200, line_search_fn="strong_wolfe")
    seen = torch.bincount(predicted.cpu(), minlength=num_classes) > 0

    def loss() -> Tensor:
        optimizer.zero_grad()
        wrong = F.binary_cross_entropy_with_logits(x @ slope + bias[predicted.cpu()], target)
        wrong = wrong + 1e-6 * bias.square().sum()  # of a class that is always right
        wrong.backward()
        return wrong

    optimizer.step(loss)
    found = bias.detach()
    return slope.detach().float().squeeze(), found.where(seen, found[seen].mean()).float()


def set_thresholds(probability: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The probability that a class must have to be in a pixel's label set, ``c``, fp32.

    Split conformal prediction for each class (Vovk, 2012) by the score of LAC (Sadinle et al., arXiv 1609.00451): of
    new pixels of every class the share ``COVERAGE`` have their class in their set, if they are as those here: softmax
    probabilities of their own class, ``n``, that the network was not trained on, and the class, int64 ``n``. A class of
    too few pixels is in every set.
    """
    thresholds = torch.zeros(num_classes)
    for c in range(num_classes):
        own = probability[label == c].float()
        if (rank := int((1 - COVERAGE) * (len(own) + 1) + 1e-9)) > 0:
            thresholds[c] = own.kthvalue(rank).values
    return thresholds


def posterior_mean(known: Statistics, image_means: Tensor, cells: Tensor) -> Tensor:
    """Where a new class lies, ``d``, by its whitened means in some images, ``k d``, each of so many ``cells``, ``k``.

    The prior is the spread of the old classes' means in each direction, half way (in logarithms) to its average.
    """
    share = cells.double() / cells.sum()
    old = known.means[~known.taught].double()
    spread = old.var(0)
    spread = (spread * spread.mean()).sqrt().clamp_min(1e-12)
    noise = known.images.double() * share.square().sum()
    return (old.mean(0) + spread / (spread + noise) * (share @ image_means.double() - old.mean(0))).float()
