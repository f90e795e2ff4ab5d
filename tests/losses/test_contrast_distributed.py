"""Two ranks compute and keep what one process does on the concatenated batch, for every preset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from protoseg.nn.queues import ClassQueues
from tests.losses.contrast_case import PRESETS, Case, make
from tests.two_ranks import TwoRanks


def whole_queue(self: ClassQueues, *size: int) -> tuple[Tensor, Tensor]:
    """In place of a random draw: everything that each queue holds."""
    exist = torch.arange(self.features.shape[1]) < self.fill.unsqueeze(1)
    if len(size) == 1:
        return self.features.clone(), exist
    return self.features.unsqueeze(1).expand(-1, size[0], -1, -1), exist.unsqueeze(1).expand(-1, size[0], -1)


def all_other_queues(self: ClassQueues, size: int) -> tuple[Tensor, Tensor]:
    classes, length, dim = self.features.shape
    exist = (torch.arange(length) < self.fill.unsqueeze(1)) & ~torch.eye(classes, dtype=torch.bool).unsqueeze(2)
    return self.features.view(1, -1, dim).expand(classes, -1, -1), exist.flatten(1)


@contextmanager
def no_draws() -> Iterator[pytest.MonkeyPatch]:
    """Queues give all that they hold, in a process that goes on to other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassQueues, "draw", whole_queue)
        patch.setattr(ClassQueues, "draw_others", all_other_queues)
        yield patch


@no_draws()
def run(images: slice) -> dict[Any, Any]:
    """Three steps of every preset on these images: loss, gradients and state, the draws fixed."""
    results: dict[Any, Any] = {}
    for preset in PRESETS:
        case = Case()
        term = make(preset, case)
        for number in range(3):
            torch.manual_seed(number)
            loss = term(case.batch(images))
            for observation in term.observations:
                term.memory.observe_accumulated([observation])
            if term.memory is not None:
                term.memory.step()
            term.after_optimizer_step()
        loss.backward()
        results[preset, "loss"] = loss.detach()
        results[preset, "features"] = case.features["mixed"].grad
        for name, parameter in term.named_parameters():
            if parameter.requires_grad:
                results[preset, name] = parameter.grad
        state = {}
        for name, value in term.state_dict().items():
            # A queue's order is random, what it holds is not.
            state[name] = value.sort(1).values if name.endswith("queue.features") else value
        results[preset, "state"] = state
    return results


def on_rank(rank: int) -> dict[Any, Any]:
    return run(slice(rank, rank + 1))


def test_two_ranks_equal_one_process(two_ranks: TwoRanks) -> None:
    one, two = run(slice(None)), two_ranks(on_rank)
    for key, value in one.items():
        if key[1] == "state":
            for name, tensor in value.items():
                for rank in range(2):
                    torch.testing.assert_close(two[rank][key][name], tensor, atol=1e-10, rtol=0, msg=f"{key} {name}")
        else:  # DDP averages gradients, and so does this
            torch.testing.assert_close((two[0][key] + two[1][key]) / 2, value, atol=1e-10, rtol=0, msg=f"{key}")
    assert one["pgpc", "loss"] > 0.01
