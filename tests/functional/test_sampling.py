"""Sampling balanced over classes: how many, of which class, and with equal chances."""

from __future__ import annotations

import pytest
import torch

from protoseg.functional.sampling import sample_hard_and_easy, sample_per_class, take_rows
from protoseg.types import IGNORE_INDEX


def test_every_class_gets_what_it_has_up_to_the_limit() -> None:
    torch.manual_seed(0)
    label = torch.tensor([3] * 40 + [0] * 3 + [IGNORE_INDEX] * 50 + [4])[torch.randperm(94)]  # 1 and 2 are absent
    index, valid = sample_per_class(label, 5, 10)
    assert valid.sum(1).tolist() == [3, 0, 0, 10, 1]
    for c in range(5):
        chosen = index[c][valid[c]]
        assert (label[chosen] == c).all()
        assert len(chosen.unique()) == len(chosen)
    assert (index[~valid] == 0).all()


def test_all_members_when_there_is_room() -> None:
    label = torch.randint(0, 4, (100,))
    index, valid = sample_per_class(label, 4, 100)
    assert sorted(index[valid].tolist()) == list(range(100))


def test_members_have_equal_chances() -> None:
    torch.manual_seed(0)
    label = torch.zeros(20, dtype=torch.int64)
    counts = torch.zeros(20)
    for _ in range(2000):
        index, _ = sample_per_class(label, 1, 5)
        counts[index[0]] += 1
    assert counts.min() > 400
    assert counts.max() < 600


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_pixel(n: int) -> None:
    label = torch.full((3,), IGNORE_INDEX) if n == 0 else torch.tensor([1])
    index, valid = sample_per_class(label, 2, 4)
    assert index.shape == (2, 4)
    assert int(valid.sum()) == n


def test_more_classes_than_an_ignored_label_leaves_room_for() -> None:
    label = torch.tensor([0, 130, 130, 254, IGNORE_INDEX])
    _, valid = sample_hard_and_easy(label, torch.tensor([True, False, True, True, True]), 255, 2)
    assert valid.sum(1)[[0, 127, 130, 254]].tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("hard", "easy", "kept"), [(20, 20, (4, 4)), (1, 20, (1, 7)), (20, 3, (5, 3)), (2, 3, (2, 3)), (0, 0, (0, 0))]
)
def test_half_hard_half_easy(hard: int, easy: int, kept: tuple[int, int]) -> None:
    label = torch.tensor([1] * (hard + easy) + [0, IGNORE_INDEX])
    is_hard = torch.tensor([True] * hard + [False] * easy + [True, True])
    index, valid = sample_hard_and_easy(label, is_hard, 3, 8)
    chosen = index[1][valid[1]]
    assert len(chosen.unique()) == len(chosen)
    assert (label[chosen] == 1).all()
    assert (int(is_hard[chosen].sum()), int((~is_hard[chosen]).sum())) == kept
    assert valid[0].sum() == 1
    assert valid[2].sum() == 0
    assert (valid.int().diff(dim=1) <= 0).all()  # the valid slots come first


def test_take_rows_against_a_loop() -> None:
    x = torch.randn(2, 3, 4, 5)
    index = torch.tensor([[0, 7], [39, 20]])
    rows = take_rows(x, index)
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image, rest = divmod(int(index[place]), 20)
        assert torch.equal(rows[place], x[image, :, rest // 5, rest % 5])
