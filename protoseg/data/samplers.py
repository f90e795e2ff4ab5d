"""Which sample goes where: an endless, resumable stream for training, and rare-class sampling."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from protoseg.data.statistics import ClassStatistics, rare_class_probability
from protoseg.data.transforms import Wanted
from protoseg.types import ProtosegError


def sample_seed(seed: int, position: int) -> int:
    """A 64-bit seed for the augmentation of the sample at ``position`` in the stream."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0])


@dataclass(eq=False)
class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(index, seed)`` from one global stream: shuffled epochs, one after the other without a border.

    Global batch ``g`` takes the positions ``g * batch_size * world`` and following; rank ``r`` takes its contiguous
    slice of ``batch_size`` of them. So what a batch holds depends on its number alone, ranks never share a position,
    and a run continues exactly by starting at a later batch.

    With ``weights`` an epoch is drawn by systematic sampling: each sample as often as its weight says, up to one more
    or one less, and likewise all samples of one weight together.

    Raises ProtosegError: no samples, or a batch size or seed that makes no sense.
    """

    num_samples: int  # may be smaller than a batch
    batch_size: int  # samples per batch and rank
    num_batches: int  # of the whole training; this is ``len``, also when ``start`` is not 0
    seed: int
    rank: int = 0
    world: int = 1
    start: int = 0  # number of the first batch to give
    weights: NDArray[np.float64] | None = None  # ``num_samples``, relative to one another; None: all alike

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1 or self.seed < 0:
            raise ProtosegError(
                "expected at least one sample, a batch size of at least 1 and a seed of at least 0, got "
                f"{self.num_samples} samples, batch_size={self.batch_size} and seed={self.seed}"
            )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = lru_cache(maxsize=1)(self._order)  # positions follow one another, and so do epochs
        for batch in range(self.start, self.num_batches):
            first = (batch * self.world + self.rank) * self.batch_size
            places = [(at, *divmod(at, self.num_samples)) for at in range(first, first + self.batch_size)]
            yield [(int(order(epoch)[place]), sample_seed(self.seed, at)) for at, epoch, place in places]

    def _order(self, epoch: int) -> NDArray[np.intp]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.num_samples)
        if self.weights is None:
            return order
        order = order[np.argsort(self.weights[order], kind="stable")]  # those of one weight, and so of a part, together
        ends = np.cumsum(self.weights[order])
        points = (np.arange(self.num_samples) + random.random()) / self.num_samples * ends[-1]
        return random.permutation(order[np.searchsorted(ends, points)])


@dataclass(frozen=True)
class RareClasses:
    """The options of rare-class sampling (DAFormer: Hoyer, Dai, Van Gool, CVPR 2022, arXiv 2111.14887, Section 3.2).

    The defaults are the paper's, for images of Cityscapes' size. An image can be drawn for a class of which its mask
    holds more than ``min_pixels``, counted at its full size, before any scaling, as in the released code. The crop is
    drawn again, up to 10 times in all, until it holds more than ``min_crop_ratio`` times as many, counted after
    scaling, as there; unlike there, the scale is drawn once.
    """

    temperature: float = 0.01  # see ``rare_class_probability``
    min_pixels: int = 3000
    min_crop_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.min_pixels < 0 or self.min_crop_ratio < 0:
            text = "rare_classes: expected a temperature above 0, min_pixels and min_crop_ratio of at least 0"
            raise ProtosegError(f"{text}, got {self.temperature}, {self.min_pixels} and {self.min_crop_ratio}")


class RareClassDraw:
    """Draws a class by its rarity, then an image with enough of it, both from a seed alone.

    ``weights`` say how often each image is to be drawn, relative to the others, ``n``; None: all alike. Raises
    ProtosegError: a class that occurs, but in no image with enough pixels.
    """

    def __init__(
        self, statistics: ClassStatistics, options: RareClasses, weights: NDArray[np.float64] | None = None
    ) -> None:
        counts, self.weights = statistics.counts, weights
        pixels = statistics.pixels if weights is None else weights @ counts
        self.probability = rare_class_probability(pixels, options.temperature)
        self.images = [np.flatnonzero(column > options.min_pixels) for column in counts.T]
        self.crop_pixels = options.min_pixels * options.min_crop_ratio
        empty = [c for c in np.flatnonzero(self.probability) if not len(self.images[c])]
        if empty:
            largest = {statistics.classes[c]: int(counts[:, c].max()) for c in empty}
            raise ProtosegError(
                f"rare-class sampling: expected for every class an image with more than {options.min_pixels} pixels of "
                f"it, got at most {', '.join(f'{n} of {name}' for name, n in largest.items())}: set "
                f"data.rare_classes.min_pixels to {min(largest.values()) - 1} or less"
            )

    def __call__(self, seed: int) -> tuple[int, Wanted]:
        """Index of an image, and the class that its crop is to hold."""
        random = np.random.default_rng((seed, 1))  # the augmentation draws from ``seed`` itself
        train_id = int(random.choice(len(self.probability), p=self.probability))
        images, weights = self.images[train_id], None
        if self.weights is not None:
            weights = self.weights[images] / self.weights[images].sum()
        return int(random.choice(images, p=weights)), Wanted(train_id, self.crop_pixels)
