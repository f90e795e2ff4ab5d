"""Which sample goes where: an endless, resumable stream for training."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

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
        epoch = -1
        order: list[int] = []
        for batch in range(self.start, self.num_batches):
            first = (batch * self.world + self.rank) * self.batch_size
            items = []
            for position in range(first, first + self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self._order(epoch).tolist()
                items.append((order[position % self.num_samples], sample_seed(self.seed, position)))
            yield items

    def _order(self, epoch: int) -> NDArray[np.intp]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.num_samples)
        if self.weights is None:
            return order
        order = order[np.argsort(self.weights[order], kind="stable")]  # those of one weight, and so of a part, together
        ends = np.cumsum(self.weights[order])
        points = (np.arange(self.num_samples) + random.random()) / self.num_samples * ends[-1]
        return random.permutation(order[np.searchsorted(ends, points)])
