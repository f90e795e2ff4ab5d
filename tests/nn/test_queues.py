"""Class queues: order, pointers, limits, draws, and two ranks as one process."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from protoseg.nn.queues import ClassQueues
from protoseg.types import ProtosegError
from tests.two_ranks import TwoRanks

C, L, D, P = 4, 7, 3, 5


def step(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, validity and keys of a global batch of 6 candidates per class; class 2 is absent at odd steps."""
    generator = torch.Generator().manual_seed(number)
    features = torch.randn(C, 6, D, generator=generator, dtype=torch.float64)
    valid = torch.rand(C, 6, generator=generator) > 0.4
    if number % 2:
        valid[2] = False
    if number == 3:
        valid[:] = True  # more than per_step
    return features, valid, torch.rand(C, 6, generator=generator)


def contents(queues: ClassQueues, c: int) -> Tensor:
    """What class ``c`` holds, oldest first."""
    fill, pointer = int(queues.fill[c]), int(queues.pointer[c])
    return queues.features[c].roll(-pointer, 0)[-fill:] if fill else queues.features[c, :0]


def test_against_a_loop_with_deques() -> None:
    queues = ClassQueues(C, L, D, P).double()
    expected: list[deque[Tensor]] = [deque(maxlen=L) for _ in range(C)]
    written = [0] * C
    for number in range(6):
        features, valid, key = step(number)
        queues.push(features, valid, key)
        for c in range(C):
            order = [i for i in key[c].argsort().tolist() if valid[c, i]][:P]
            expected[c].extend(features[c, i] for i in order)
            written[c] += len(order)
    assert queues.fill.tolist() == [len(q) for q in expected]
    assert queues.pointer.tolist() == [w % L for w in written]  # by what was written, not by one
    assert len(set(written)) > 1
    for c in range(C):
        assert torch.equal(contents(queues, c), torch.stack(list(expected[c])))


def test_nothing_valid_writes_nothing() -> None:
    queues = ClassQueues(C, L, D, P)
    queues.push(torch.randn(C, 6, D), torch.zeros(C, 6, dtype=torch.bool))
    assert queues.fill.sum() == queues.pointer.sum() == queues.features.abs().sum() == 0
    features, valid = queues.draw(4)
    assert not valid.any()
    assert torch.isfinite(features).all()
    assert not queues.draw_others(4)[1].any()


def test_a_class_with_more_than_the_limit_gets_a_fair_sample() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(10)
    queues = ClassQueues(1, 2, 1, 2)
    for _ in range(1000):
        queues.push(torch.arange(10.0).view(1, 10, 1), torch.ones(1, 10, dtype=torch.bool))
        counts[queues.features.flatten().long()] += 1
    assert counts.min() > 140
    assert counts.max() < 260


def filled() -> ClassQueues:
    """Class c holds c + 1 vectors of value c; class 2 none."""
    queues = ClassQueues(C, L, D, P)
    number = torch.tensor([1, 2, 0, 4])
    valid = torch.arange(P) < number.unsqueeze(1)
    queues.push(torch.arange(float(C)).view(C, 1, 1).expand(C, P, D), valid)
    return queues


def test_draw_from_the_own_queue_only_what_is_there() -> None:
    torch.manual_seed(0)
    features, valid = filled().draw(50, 3)
    assert features.shape == (C, 50, 3, D)
    assert valid.flatten(1).all(1).tolist() == [True, True, False, True]
    for c in (0, 1, 3):
        assert (features[c] == c).all()  # slots beyond the fill hold zeros: never drawn
    queues = ClassQueues(1, 4, 1, 4)
    queues.push(torch.arange(4.0).view(1, 4, 1), torch.ones(1, 4, dtype=torch.bool))
    counts = torch.bincount(queues.draw(4000)[0].flatten().long(), minlength=4)
    assert counts.min() > 850


def test_draw_from_all_other_queues_equally() -> None:
    torch.manual_seed(0)
    features, valid = filled().draw_others(3000)
    assert valid.all()
    for c in range(C):
        counts = torch.bincount(features[c, :, 0].long(), minlength=C)
        others = [i for i in (0, 1, 3) if i != c]
        assert counts.sum() == counts[others].sum()
        assert counts[others].min() > 3000 / len(others) * 0.85


def test_one_class_has_no_others() -> None:
    queues = ClassQueues(1, 4, 2, 4)
    queues.push(torch.ones(1, 4, 2), torch.ones(1, 4, dtype=torch.bool))
    assert not queues.draw_others(3)[1].any()


def test_state_in_buffers_in_place() -> None:
    queues = filled()
    assert list(queues.parameters()) == []
    assert set(queues.state_dict()) == {"features", "pointer", "fill"}
    assert queues.fill.dtype == queues.pointer.dtype == torch.int64
    before = queues.features
    queues.push(torch.randn(C, 2, D, requires_grad=True), torch.ones(C, 2, dtype=torch.bool))
    assert queues.features is before
    assert not queues.features.requires_grad


@pytest.mark.parametrize("sizes", [(0, 4, 2, 2), (2, 4, 0, 2), (2, 4, 2, 0), (2, 4, 2, 5)])
def test_bad_sizes(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ProtosegError, match="per_step"):
        ClassQueues(*sizes)


def run(part: slice) -> dict[str, Tensor]:
    queues = ClassQueues(C, L, D, P).double()
    for number in range(6):
        features, valid, key = step(number)
        queues.push(features[:, part], valid[:, part], key[:, part])
    return queues.state_dict()


def on_rank(rank: int) -> dict[str, Tensor]:
    return run(slice(0, 3) if rank == 0 else slice(3, 6))


def test_two_ranks_equal_one_process(two_ranks: TwoRanks) -> None:
    one = run(slice(None))
    for two in two_ranks(on_rank):
        for name, value in one.items():
            assert torch.equal(two[name], value), name
