"""Which sample goes where: an endless, resumable stream for training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from protoseg.types import ProtosegError

_WEIGHTED_EPOCH = 1000  # positions at least: of fewer, rounding would change the weights


def sample_seed(seed: int, position: int) -> int:
    """A 64-bit seed for the augmentation of the sample at ``position`` in the stream."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0])


@dataclass(eq=False)
class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(index, seed)`` from one global stream: shuffled epochs, one after the other without a border.

    Global batch ``g`` takes the positions ``g * batch_size * world`` and following; rank ``r`` takes its contiguous
    slice of ``batch_size`` of them. So what a batch holds depends on its number alone, ranks never share a position,
    and a run continues exactly by starting at a later batch.

    With ``shares``, each part of the data set has positions of every epoch by its weight, taken from shuffled passes
    over that part, again without a border.

    Attributes:
        num_samples: size of the data set; may be smaller than a batch.
        batch_size: samples per batch and rank.
        num_batches: batches of the whole training; this is ``len``, also when ``start`` is not 0.
        seed: base seed, not negative.
        rank, world: this process and how many there are.
        start: number of the first batch to give.
        shares: size and weight of each of the consecutive parts that are drawn by weight.

    Raises:
        ProtosegError: no samples, or a batch size or seed that makes no sense.
    """

    num_samples: int
    batch_size: int
    num_batches: int
    seed: int
    rank: int = 0
    world: int = 1
    start: int = 0
    shares: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1 or self.seed < 0:
            raise ProtosegError(
                "expected at least one sample, a batch size of at least 1 and a seed of at least 0, got "
                f"{self.num_samples} samples, batch_size={self.batch_size} and seed={self.seed}"
            )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        total, length = sum(weight for _, weight in self.shares), max(self.num_samples, _WEIGHTED_EPOCH)
        quotas = [max(1, round(length * weight / total)) for _, weight in self.shares]
        length = sum(quotas) or self.num_samples
        epoch = -1
        order: list[int] = []
        for batch in range(self.start, self.num_batches):
            first = (batch * self.world + self.rank) * self.batch_size
            items = []
            for position in range(first, first + self.batch_size):
                if position // length != epoch:
                    epoch = position // length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self._drawn(epoch, quotas)).tolist()
                items.append((order[position % length], sample_seed(self.seed, position)))
            yield items

    def _drawn(self, epoch: int, quotas: Sequence[int]) -> NDArray[np.int64]:
        """The samples of an epoch, in no order: ``quotas`` of the parts."""
        found, first = [], 0
        for part, ((size, _), quota) in enumerate(zip(self.shares, quotas, strict=True)):
            passes = range(epoch * quota // size, ((epoch + 1) * quota - 1) // size + 1)
            order = [np.random.default_rng((self.seed, part, number)).permutation(size) for number in passes]
            found.append(first + np.concatenate(order)[epoch * quota % size :][:quota])
            first += size
        return np.concatenate(found) if found else np.arange(self.num_samples)
