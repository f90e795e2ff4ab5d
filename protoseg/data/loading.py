"""The parts of a DataLoader: collation, worker set-up, errors of workers told as if there were none, shared memory."""

import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from protoseg.data.dataset import Sample, SegmentationDataset, to_sample
from protoseg.data.samplers import RareClassDraw
from protoseg.types import IGNORE_INDEX, AdaptationBatch, Batch, ProtosegError

TIMEOUT = 600.0  # seconds that a batch of the workers is waited for
PREFETCH = 2  # batches that each worker makes ahead, torch's own number
SHARED_MEMORY = Path("/dev/shm")  # by which workers hand over their batches, on Linux
_TOLD: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("loading.yaml").read_bytes())


@dataclass
class Augmented(Dataset[Sample]):
    """A data set read by ``(index, seed)`` and augmented; the pairs come from ``StepBatchSampler``.

    With rare-class sampling, ``draw`` makes of the seed another index and a class that the crop is to hold.
    """

    dataset: SegmentationDataset
    draw: RareClassDraw | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        index, seed = item
        wanted = None
        if self.draw is not None:
            index, wanted = self.draw(seed)
        part, index = self.dataset.locate(index)
        assert part.transform is not None  # set by the DataModule
        image, label = part.transform(*part.read(index), seed=seed, wanted=wanted)
        return to_sample(image, label, str(part.samples[index][0]))


def collate(samples: Sequence[Sample] | Batch) -> Batch:
    """Stack samples into a ``Batch``, which stays as it is; pad smaller ones (bottom, right): 0, ``IGNORE_INDEX``."""
    if isinstance(samples, Batch):
        return samples
    sizes = [tuple(sample.label.shape) for sample in samples]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    margins = [(0, width - w, 0, height - h) for h, w in sizes]
    images, labels, names = zip(*samples, strict=True)
    return Batch(_stacked(images, margins, 0), _stacked(labels, margins, IGNORE_INDEX), torch.tensor(sizes), [*names])


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

    ``seed`` is the base seed of the workers, ``timeout`` the seconds that a batch of theirs is waited for. Raises
    ProtosegError, while it runs: what a worker raised, or a worker that was killed or gives nothing any more.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        num_workers: int,
        pin_memory: bool,
        seed: int,
        rank: int,
        timeout: float = TIMEOUT,
        **options: Any,
    ) -> None:
        super().__init__(
            dataset,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=collate,
            worker_init_fn=partial(seed_worker, seed=seed, rank=rank),
            persistent_workers=num_workers > 0,
            timeout=timeout if num_workers > 0 else 0,
            # Else each pass over the loader would draw from torch's global generator and change the training after it.
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except ProtosegError as error:
            self.shutdown()
            # torch puts the worker's traceback before the message: "...\nprotoseg.types.ProtosegError: message\n".
            raise ProtosegError(str(error).rsplit("ProtosegError: ", 1)[-1].strip()) from None
        except RuntimeError as error:
            self.shutdown()
            if (message := worker_failure(error)) is None:
                raise
            raise ProtosegError(message) from error

    def shutdown(self) -> None:
        """End the workers."""
        if self._iterator is not None:
            # Left to the garbage collector, workers are waited for 5 s each: their queues are gone by then.
            cast(Any, self._iterator)._shutdown_workers()
            self._iterator = None


class PairedLoader:
    """A source and a target loader of one length in step, as ``AdaptationBatch``es."""

    def __init__(self, source: Loader, target: Loader) -> None:
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[AdaptationBatch]:
        try:
            for source, target in zip(self.source, self.target, strict=True):
                yield AdaptationBatch(source, target)
        except ProtosegError:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """End the workers of both."""
        self.source.shutdown()
        self.target.shutdown()


def check_shared_memory(num_workers: int, batch: Callable[[], int]) -> None:
    """Warn if few of the workers' batches, each of ``batch()`` bytes, fit into shared memory.

    Raises ProtosegError: not even one fits, so that the workers would be killed or wait for ever.
    """
    if num_workers == 0 or not sys.platform.startswith("linux") or not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, batch()
    if free >= num_workers * PREFETCH * needed:
        return
    text = (
        f"shared memory ({SHARED_MEMORY}): expected room for {num_workers * PREFETCH} batches of the {num_workers} "
        f"loader processes, {needed / 1e6:.1f} MB each, got {free / 1e6:.1f} MB free: {_TOLD['remedy']}"
    )
    if free < needed:
        raise ProtosegError(text)
    warnings.warn(text, stacklevel=2)


def worker_failure(error: RuntimeError) -> str | None:
    """What torch says of a worker that died or gives nothing, in one message with the remedy; None for other errors."""
    cause = error.__cause__ or error.__context__  # which may name the signal
    text = f"{error} {cause or ''}"
    free = f"{shutil.disk_usage(SHARED_MEMORY).free / 1e6:.1f} MB free now" if SHARED_MEMORY.is_dir() else "none here"
    for pattern, message in _TOLD["failures"].items():
        if match := re.search(pattern, text):
            return message.format(*match.groups(), memory=f"{SHARED_MEMORY}, {free}", remedy=_TOLD["remedy"])
    return None
