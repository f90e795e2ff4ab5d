"""No step of ours makes a GPU's host wait: what would is counted on a CPU, but for what waits on a CPU alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adaptation import AdaptationSetting, adaptation_steps
from benchmarks.step import StepSetting, step_steps
from benchmarks.stops import count_stops

CPU = torch.device("cpu")
# one_hot looks at its numbers, and the loss is judged at once; on a GPU a step later, which waits for that step alone.
ON_A_CPU_ALONE = {"_local_scalar_dense in resize.py: majority_label", "_local_scalar_dense in base.py: judge_loss"}


@pytest.mark.parametrize("name", ["prototype", "parametric", "dacs", "daformer + pgpc"])
def test_a_step_never_waits(name: str) -> None:
    size = {"batch": 2, "height": 64, "width": 64}
    steps = {**step_steps(StepSetting(**size), CPU), **adaptation_steps(AdaptationSetting(**size), CPU)}
    for _ in range(2):
        steps[name]()  # the first one makes state
    assert set(count_stops(steps[name], CPU)) <= ON_A_CPU_ALONE


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.nonzero, torch.unique, lambda x: x[x > 0]])
def test_what_would_wait_is_found(read) -> None:  # type: ignore[no-untyped-def]
    assert sum(count_stops(lambda: read(torch.ones(1)), CPU).values()) >= 1
