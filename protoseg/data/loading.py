"""The parts of a DataLoader: which sample goes where, collation, workers and their errors, shared memory."""

import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, Sampler

from protoseg import distributed
from protoseg.data.dataset import Sample, SegmentationDataset, to_sample
from protoseg.data.label_spaces import rest_in
from protoseg.data.statistics import ClassStatistics, rare_class_probability
from protoseg.data.transforms import Wanted
from protoseg.types import IGNORE_INDEX, AdaptationBatch, Batch, ProtosegError, Rest, told, yaml_beside

TIMEOUT = 600.0  # seconds that a batch of the workers is waited for
PREFETCH = 2  # batches that each worker makes ahead, torch's own number
SHARED_MEMORY = Path("/dev/shm")  # by which workers hand over their batches, on Linux
_TOLD: dict[str, Any] = yaml_beside(__file__, "loading.yaml")


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
    """

    num_samples: int  # at least 1; may be smaller than a batch
    batch_size: int  # samples per batch and rank
    num_batches: int  # of the whole training; this is ``len``, also when ``start`` is not 0
    seed: int
    rank: int = 0
    world: int = 1
    start: int = 0  # number of the first batch to give
    weights: NDArray[np.float64] | None = None  # ``num_samples``, relative to one another; None: all alike

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
            got, least = ", ".join(f"{n} of {name}" for name, n in largest.items()), min(largest.values()) - 1
            text = f"rare-class sampling: expected for every class an image with more than {options.min_pixels} pixels"
            raise ProtosegError(f"{text} of it, got at most {got}: set data.rare_classes.min_pixels to {least} or less")

    def __call__(self, seed: int) -> tuple[int, Wanted]:
        """Index of an image, and the class that its crop is to hold."""
        random = np.random.default_rng((seed, 1))  # the augmentation draws from ``seed`` itself
        train_id = int(random.choice(len(self.probability), p=self.probability))
        images, weights = self.images[train_id], None
        if self.weights is not None:
            weights = self.weights[images] / self.weights[images].sum()
        return int(random.choice(images, p=weights)), Wanted(train_id, self.crop_pixels)


@dataclass
class Augmented(Dataset[Sample]):
    """A data set read by ``(index, seed)`` and augmented; the pairs come from ``StepBatchSampler``.

    With rare-class sampling, ``draw`` makes of the seed another index and a class that the crop is to hold. Samples of
    a partial data set have a fourth part, their ``Rest``.
    """

    dataset: SegmentationDataset
    draw: RareClassDraw | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, seed = item
        wanted = None
        if self.draw is not None:
            index, wanted = self.draw(seed)
        part, index = self.dataset.locate(index)
        assert part.transform is not None  # set by the DataModule
        image, label = part.transform(*part.read(index), seed=seed, wanted=wanted)
        sample = to_sample(image, label, str(part.samples[index][0]), part.partial)
        if not self.dataset.partial:
            return sample
        classes = torch.zeros(part.label_space.num_classes, dtype=torch.bool)
        classes[list(part.rest or ())] = True
        return (*sample, Rest(torch.from_numpy(label == rest_in(label)) & classes.any(), classes))


def collate(samples: Any) -> Batch:
    """Stack samples into a ``Batch``, which stays as it is; pad smaller ones (bottom, right): 0, ``IGNORE_INDEX``."""
    if isinstance(samples, Batch):
        return samples
    sizes = [tuple(sample[1].shape) for sample in samples]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    margins = [(0, width - w, 0, height - h) for h, w in sizes]
    images, labels, names, *more = zip(*samples, strict=True)
    batch = Batch(_stacked(images, margins, 0), _stacked(labels, margins, IGNORE_INDEX), torch.tensor(sizes), [*names])
    if not more:
        return batch
    pixels, classes = zip(*more[0], strict=True)
    return batch._replace(rest=Rest(_stacked(pixels, margins, 0), torch.stack(classes)))


def _stacked(maps: Sequence[Tensor], margins: Sequence[tuple[int, int, int, int]], value: int) -> Tensor:
    padded = (pad(x, margin, value=value) if any(margin) else x for x, margin in zip(maps, margins, strict=True))
    return torch.stack([*padded])


def seed_worker(worker: int, seed: int, rank: int) -> None:
    """Seed python, numpy and torch apart for every (seed, rank, worker), and keep OpenCV to the worker's own core."""
    state = [int(s) for s in np.random.SeedSequence((seed, rank, worker)).generate_state(3)]
    random.seed(state[0])
    np.random.seed(state[1])  # noqa: NPY002  for user code that draws from the global generator
    torch.manual_seed(state[2])
    cv2.setNumThreads(0)


class Loader(DataLoader[Batch]):
    """A DataLoader that leaves the global random state alone and raises a worker's ProtosegError as its bare message.

    ``seed`` is the base seed of the workers, ``timeout`` the seconds that a batch of theirs is waited for, ``options``
    are torch's. Raises ProtosegError, while it runs: what a worker raised, or one that was killed or gives nothing now.
    """

    def __init__(
        self, dataset: Dataset[Any], num_workers: int, seed: int, timeout: float = TIMEOUT, **options: Any
    ) -> None:
        if num_workers > 0:
            options |= {"persistent_workers": True, "timeout": timeout}
        # Else each pass over the loader would draw from torch's global generator and change the training after it.
        options["generator"] = torch.Generator().manual_seed(seed)
        init = partial(seed_worker, seed=seed, rank=distributed.rank())
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate, worker_init_fn=init, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            with told(worker_failure, ProtosegError, RuntimeError):
                yield from super().__iter__()
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """End the workers."""
        if self._iterator is not None:
            # Left to the garbage collector, workers are waited for 5 s each: their queues are gone by then.
            cast(Any, self._iterator)._shutdown_workers()
            self._iterator = None


@dataclass
class PairedLoader:
    """A source and a target loader of one length in step, as ``AdaptationBatch``es; their workers end with the pass."""

    source: Loader
    target: Loader

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[AdaptationBatch]:
        # Also where the trainer drops what is left of the pass: it does not know these loaders.
        with closing(self.source), closing(self.target):
            yield from map(AdaptationBatch._make, zip(self.source, self.target, strict=True))


def check_shared_memory(num_workers: int, batch: Callable[[], int]) -> None:
    """Warn if few of the workers' batches, each of ``batch()`` bytes, fit into shared memory.

    Raises ProtosegError: not even one fits, so that the workers would be killed or wait for ever.
    """
    if num_workers == 0 or not sys.platform.startswith("linux") or not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, batch()
    if free >= num_workers * PREFETCH * needed:
        return
    wanted = f"{num_workers * PREFETCH} batches of the {num_workers} loader processes, {needed / 1e6:.1f} MB each"
    got = f"{free / 1e6:.1f} MB free: {_TOLD['remedy']}"
    text = f"shared memory ({SHARED_MEMORY}): expected room for {wanted}, got {got}"
    if free < needed:
        raise ProtosegError(text)
    warnings.warn(text, stacklevel=2)


def worker_failure(error: Exception) -> str | None:
    """What a worker raised, or torch says of one that died or gives nothing, with the remedy; None for other errors."""
    if isinstance(error, ProtosegError):
        # torch puts the worker's traceback before the message: "...\nprotoseg.types.ProtosegError: message\n".
        return str(error).rsplit("ProtosegError: ", 1)[-1].strip()
    cause = error.__cause__ or error.__context__  # which may name the signal
    text = f"{error} {cause or ''}"
    free = f"{shutil.disk_usage(SHARED_MEMORY).free / 1e6:.1f} MB free now" if SHARED_MEMORY.is_dir() else "none here"
    for pattern, message in _TOLD["failures"].items():
        if match := re.search(pattern, text):
            return message.format(*match.groups(), memory=f"{SHARED_MEMORY}, {free}", remedy=_TOLD["remedy"])
    return None
