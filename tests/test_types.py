"""Label spaces and the values that travel between rooms."""

from __future__ import annotations

import pytest
import torch

from protoseg.distributed import all_reduce_, is_distributed, mean_over_ranks, rank, world_size
from protoseg.types import LabelSpace, ProtosegError


def test_label_space_needs_a_colour_per_class() -> None:
    assert LabelSpace("two", ("a", "b"), ((0, 0, 0), (1, 1, 1))).num_classes == 2
    with pytest.raises(ProtosegError, match="2 classes and 1 colours"):
        LabelSpace("two", ("a", "b"), ((0, 0, 0),))


def test_without_a_process_group_nothing_is_reduced() -> None:
    assert (is_distributed(), rank(), world_size()) == (False, 0, 1)
    x = torch.arange(3.0)
    assert all_reduce_(x) is x
    assert x.tolist() == [0, 1, 2]
    assert float(mean_over_ranks(torch.tensor(6.0), torch.tensor(3))) == 2
    assert float(mean_over_ranks(torch.tensor(0.0), torch.tensor(0))) == 0
