"""Two ranks, and micro-batches of each, move the prototypes as one process on the concatenated batch does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.nn import PrototypeMemory
from protoseg.nn.prototype_memory import Observation
from tests.two_ranks import TwoRanks

C, K, D, N = 5, 4, 8, 300


def data(step: int) -> tuple[Tensor, Tensor]:
    """A global batch; its first part lacks class 4, its second part lacks 0 and 1, some pixels are ignored."""
    generator = torch.Generator().manual_seed(step)
    embeddings = F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1)
    label = torch.cat(
        [torch.randint(0, 4, (200,), generator=generator), torch.randint(2, 5, (100,), generator=generator)]
    )
    label[::17] = -1
    return embeddings, label


def run(parts: list[slice], init: str) -> Tensor:
    """Prototypes after five steps, each of these micro-batches."""
    torch.manual_seed(0)
    memory = PrototypeMemory(C, K, D, momentum=0.9, init=init).double()
    for step in range(5):
        memory.observe_accumulated([observation(memory, *(x[part] for x in data(step))) for part in parts])
        memory.step()
    return memory.prototypes


def observation(memory: PrototypeMemory, embeddings: Tensor, label: Tensor) -> Observation:
    cosines = memory.similarity(embeddings)
    own = cosines.own(label)
    correct = cosines.scores.argmax(1) == label
    return Observation(memory, embeddings, own, label, correct, memory.balance(own, label).member)


def on_rank(rank: int, init: str, micro_batches: int) -> Tensor:
    bounds = torch.linspace(*((0, 200) if rank == 0 else (200, N)), micro_batches + 1).int().tolist()  # unequal shares
    return run([slice(*pair) for pair in pairwise(bounds)], init)


@pytest.mark.parametrize(("init", "micro_batches"), [("features", 1), ("random", 1), ("features", 3)])
def test_two_ranks_equal_one_process(two_ranks: TwoRanks, init: str, micro_batches: int) -> None:
    one = run([slice(None)], init)
    for two in two_ranks(on_rank, init, micro_batches):
        torch.testing.assert_close(two, one, atol=1e-10, rtol=0)
