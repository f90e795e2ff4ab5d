"""Running statistics of BatchNorm held still."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from protoseg.models.recompute import unmoved_statistics


def test_the_output_is_the_same_and_the_statistics_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None)).train()
    x, before = torch.randn(2, 3, 5, 5), deepcopy(model.state_dict())
    with unmoved_statistics(model):
        still = model(x)
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []
    assert [norm.momentum for norm in model[1:]] == [0.1, None]
    assert torch.equal(still, model(x))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_momentum_comes_back_after_an_error() -> None:
    model = nn.BatchNorm2d(4)
    with pytest.raises(KeyError), unmoved_statistics(model):
        raise KeyError
    assert model.momentum == 0.1
    assert model.num_batches_tracked == 0
