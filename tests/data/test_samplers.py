from __future__ import annotations

import pytest

from protoseg.data.loading import StepBatchSampler, sample_seed


def stream(**options: int) -> list[list[tuple[int, int]]]:
    return list(StepBatchSampler(**{"num_samples": 10, "batch_size": 4, "num_batches": 9, "seed": 0, **options}))


def test_every_epoch_is_a_permutation_and_batches_cross_its_end() -> None:
    indices = [index for batch in stream(num_batches=10) for index, _ in batch]
    epochs = [indices[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_follow_the_position_and_never_repeat() -> None:
    seeds = [seed for batch in stream() for _, seed in batch]
    assert seeds == [sample_seed(0, position) for position in range(36)]
    assert len(set(seeds)) == 36


def test_ranks_share_out_the_stream_of_one_process() -> None:
    one = stream(batch_size=8)
    ranks = [stream(batch_size=4, rank=rank, world=2) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one


@pytest.mark.parametrize("start", [0, 1, 5, 9])
def test_start_skips_exactly(start: int) -> None:
    sampler = StepBatchSampler(10, 4, 9, seed=0, start=start)
    assert list(sampler) == stream()[start:]
    assert len(sampler) == 9
    assert list(sampler) == stream()[start:]  # a second pass is the same


def test_length_does_not_change_the_beginning() -> None:
    assert stream(num_batches=20)[:9] == stream()


def test_seed_changes_order_and_augmentation() -> None:
    a, b = stream(seed=0), stream(seed=1)
    assert [i for batch in a for i, _ in batch] != [i for batch in b for i, _ in batch]
    assert {s for batch in a for _, s in batch}.isdisjoint({s for batch in b for _, s in batch})


def test_data_set_smaller_than_a_batch() -> None:
    batches = stream(num_samples=3, batch_size=7, num_batches=3)
    assert [len(batch) for batch in batches] == [7, 7, 7]
    assert sorted(index for index, _ in batches[0][:3]) == [0, 1, 2]
