"""The EMA teacher: its schedule, its rule for every kind of state, its mode."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from protoseg.nn import PrototypeHead
from protoseg.nn.teacher import EMATeacher
from protoseg.types import ProtosegError


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))


def wander(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
    model.train()(torch.randn(2, 3, 4, 4))  # moves the statistics of BatchNorm


@pytest.mark.parametrize("alpha", [0.999, 0.6])
def test_schedule_and_average_against_a_loop(alpha: float) -> None:
    model = student()
    teacher = EMATeacher(model, alpha)
    expected = deepcopy(model.state_dict())
    for t in range(1, 6):
        wander(model)
        teacher.update_parameters(model)
        momentum = min(1 - 1 / (t + 1), alpha)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = momentum * expected[name] + (1 - momentum) * value
            else:
                expected[name] = value.clone()  # counters
        assert int(teacher.n_averaged) == t + 1
    for name, value in teacher.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_before_the_cap_it_is_the_plain_mean_of_all_states() -> None:
    model = student()
    teacher, states = EMATeacher(model), [model[0].weight.detach().clone()]
    for _ in range(4):
        wander(model)
        teacher.update_parameters(model)
        states.append(model[0].weight.detach().clone())
    torch.testing.assert_close(teacher.module[0].weight, torch.stack(states).mean(0))


def test_never_trains_never_drops_never_learns() -> None:
    teacher = EMATeacher(student())
    teacher.train()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(teacher(x), teacher(x))
    before = deepcopy(teacher.state_dict())
    teacher(x)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_prototypes_are_averaged_and_of_unit_length() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(8, 3, num_prototypes=2)
    head.memory.updates += 1
    teacher = EMATeacher(head)
    old = head.memory.prototypes.clone()
    with torch.no_grad():
        head.memory.prototypes.copy_(nn.functional.normalize(torch.randn_like(old), dim=2))
        head.memory.updates += 5
    teacher.update_parameters(head)
    ours = teacher.module.memory
    torch.testing.assert_close(ours.prototypes, nn.functional.normalize(old + head.memory.prototypes, dim=2))
    assert torch.equal(ours.updates, head.memory.updates)


def test_a_prototype_placed_late_is_taken_over_at_once() -> None:
    """Averaged with the random vector it had before, it would take hundreds of steps to get there."""
    torch.manual_seed(0)
    head = PrototypeHead(8, 3, num_prototypes=2)
    teacher = EMATeacher(head, alpha=0.99)
    for step in range(60):
        if step == 50:
            head.memory.prototypes[1] = nn.functional.normalize(torch.randn(2, 8), dim=1)
            head.memory.updates[1] = 1
        teacher.update_parameters(head)
    torch.testing.assert_close(teacher.module.memory.prototypes[1], head.memory.prototypes[1])


def test_the_state_dict_goes_on_where_it_stopped() -> None:
    model = student()
    teacher = EMATeacher(model)
    for _ in range(3):
        wander(model)
        teacher.update_parameters(model)
    other = EMATeacher(student())
    other.load_state_dict(teacher.state_dict())
    wander(model)
    teacher.update_parameters(model)
    other.update_parameters(model)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_alpha_outside_its_range(alpha: float) -> None:
    with pytest.raises(ProtosegError, match="alpha"):
        EMATeacher(student(), alpha)
