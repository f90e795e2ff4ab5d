"""Which sample goes where: an endless, resumable stream for training, a plain share of the indices for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from protoseg.types import ProtosegError

_WEIGHTED_EPOCH = 1000  # positions at least


def sample_seed(seed: int, position: int) -> int:
    """A 64-bit seed for the augmentation of the sample at ``position`` in the stream."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0])


class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(index, seed)`` from one global stream: shuffled epochs, one after the other without a border.

    Global batch ``g`` takes the positions ``g * batch_size * world`` and following; rank ``r`` takes its contiguous
    slice of ``batch_size`` of them. So what a batch holds depends on its number alone, ranks never share a position,
    and a run continues exactly by starting at a later batch.

    Args:
        num_samples: size of the data set; may be smaller than a batch.
        batch_size: samples per batch and rank.
        num_batches: batches of the whole training; this is ``len``, also when ``start`` is not 0.
        seed: base seed, not negative.
        rank, world: this process and how many there are.
        start: number of the first batch to give.
        shares: size and weight of the consecutive parts of the data set. In an epoch, each part then has a share of the
            positions by its weight, taken from shuffled passes over that part, one after the other without a border.

    Raises:
        ProtosegError: no samples, or a batch size or seed that makes no sense.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        shares: Sequence[tuple[int, float]] = (),
    ) -> None:
        if num_samples < 1 or batch_size < 1 or seed < 0:
            raise ProtosegError(
                "expected at least one sample, a batch size of at least 1 and a seed of at least 0, got "
                f"{num_samples} samples, batch_size={batch_size} and seed={seed}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.world = world
        self.start = start
        # Of short epochs, rounding would change the weights.
        total, length = sum(weight for _, weight in shares), max(num_samples, _WEIGHTED_EPOCH)
        self.quotas = [(size, max(1, round(length * weight / total))) for size, weight in shares]
        self.epoch_length = sum(quota for _, quota in self.quotas) or num_samples

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = -1
        order: list[int] = []
        for batch in range(self.start, self.num_batches):
            first = (batch * self.world + self.rank) * self.batch_size
            items = []
            for position in range(first, first + self.batch_size):
                if position // self.epoch_length != epoch:
                    epoch = position // self.epoch_length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self._drawn(epoch)).tolist()
                items.append((order[position % self.epoch_length], sample_seed(self.seed, position)))
            yield items

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch, in no order."""
        found, first = [], 0
        for part, (size, quota) in enumerate(self.quotas):
            start = epoch * quota
            passes = range(start // size, (start + quota - 1) // size + 1)
            order = [np.random.default_rng((self.seed, part, number)).permutation(size) for number in passes]
            found.append(first + np.concatenate(order)[start % size :][:quota])
            first += size
        return np.concatenate(found) if found else np.arange(self.num_samples)


class RankSampler(Sampler[int]):
    """The indices ``rank, rank + world, rank + 2 * world, ...``: every sample on one rank, none twice."""

    def __init__(self, num_samples: int, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, num_samples, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
