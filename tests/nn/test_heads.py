"""Heads and prototype memory: shapes, parameters, precision, update rules, edge cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from protoseg.functional.prototypes import cluster
from protoseg.nn import AtrousHead, ParametricHead, PrototypeHead, PrototypeMemory
from protoseg.types import ProtosegError
from tests.functional.dense import dense


def learned(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_learned_parameters_do_not_depend_on_the_number_of_classes() -> None:
    heads = [PrototypeHead(32, classes, logits="temperature") for classes in (19, 847)]
    assert learned(heads[0]) == learned(heads[1])
    layernorm = [learned(PrototypeHead(32, classes, logits="layernorm")) for classes in (19, 847)]
    assert layernorm[1] - layernorm[0] == 2 * (847 - 19)


@pytest.mark.parametrize("logits", ["layernorm", "temperature"])
def test_a_pixel_takes_the_class_of_its_nearest_prototype(logits: str) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(8, 5, num_prototypes=3, logits=logits).eval()
    output = head(torch.randn(2, 8, 6, 7))
    assert output.logits.shape == (2, 5, 6, 7)
    assert dense(output.similarities).shape == (2 * 6 * 7, 5, 3)
    torch.testing.assert_close(output.embeddings.norm(dim=1), torch.ones(2, 6, 7))
    pixel = output.embeddings[1, :, 2, 3]
    nearest = (head.memory.prototypes @ pixel).amax(1)
    assert output.logits[1, :, 2, 3].argmax() == nearest.argmax()
    expected = F.layer_norm(nearest, (5,)) if logits == "layernorm" else nearest / 0.1
    torch.testing.assert_close(output.logits[1, :, 2, 3], expected, atol=1e-5, rtol=1e-4)


def test_twins_share_everything_but_the_classifier() -> None:
    prototype, parametric = PrototypeHead(16, 4, logits="temperature", embedding_norm=False), ParametricHead(16, 4)
    assert learned(parametric) - learned(prototype) == 16 * 4 + 4
    assert parametric(torch.randn(1, 16, 2, 2)).logits.shape == (1, 4, 2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prototype_arithmetic_is_fp32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(8, 5)
    with torch.autocast("cpu", dtype=dtype):
        output = head(torch.randn(1, 8, 4, 4))
    assert output.logits.dtype == dense(output.similarities).dtype == output.embeddings.dtype == torch.float32
    # Cosines may leave [-1, 1] only by fp32 rounding: half precision would by 1e-3.
    assert dense(output.similarities).abs().max() <= 1 + 1e-6
    torch.testing.assert_close(output.embeddings.norm(dim=1), torch.ones(1, 4, 4), atol=1e-6, rtol=0)


def observe(memory: PrototypeMemory, n: int = 400, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    c, _, d = memory.prototypes.shape
    embeddings = F.normalize(torch.randn(n, d, generator=generator, dtype=memory.prototypes.dtype), dim=1)
    label = torch.randint(0, c, (n,), generator=generator)
    clustering = memory.balance(memory.similarity(embeddings).own(label), label)
    memory.observe(embeddings, clustering.member, torch.ones(n, dtype=torch.bool))


def test_no_gradient_and_state_in_buffers() -> None:
    memory = PrototypeMemory(3, 2, 4)
    assert list(memory.parameters()) == []
    before = memory.prototypes
    observe(memory)
    memory.step()
    assert memory.prototypes is before  # in place: no new tensor, optimizers and DDP keep their references
    assert set(memory.state_dict()) == {"prototypes", "updates", "occupancy"}
    assert memory.occupancy.sum() == 400
    copy = PrototypeMemory(3, 2, 4)
    copy.load_state_dict(memory.state_dict())
    assert (copy.prototypes == memory.prototypes).all()


def test_accumulated_micro_batches_are_one_update() -> None:
    torch.manual_seed(0)
    memory = PrototypeMemory(3, 1, 4, init="random").double()  # K = 1: the clustering cannot differ
    start = memory.prototypes.clone()
    for seed in range(3):
        observe(memory, seed=seed)
    memory.step()
    assert (memory.updates == 1).all()
    assert memory.occupancy.sum() == 1200
    assert not torch.equal(memory.prototypes, start)
    torch.testing.assert_close(memory.prototypes.norm(dim=2), torch.ones(3, 1, dtype=torch.float64))
    assert (memory.pending_sums == 0).all()


def test_constant_momentum_moves_as_the_paper_says() -> None:
    memory = PrototypeMemory(1, 1, 2, momentum=0.9, momentum_warmup=0, init="random").double()
    memory.prototypes.copy_(torch.tensor([[[1.0, 0.0]]]))
    up = torch.tensor([[0.0, 1.0]]).double()
    memory.observe(up, torch.tensor([0]), torch.tensor([True]))
    memory.step()
    torch.testing.assert_close(memory.prototypes[0, 0], F.normalize(torch.tensor([0.9, 0.1]).double(), dim=0))


def test_momentum_warm_up_and_feature_initialisation() -> None:
    up, target, yes = torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([True])
    memory = PrototypeMemory(1, 1, 2, momentum=0.999, momentum_warmup=10, init="features")
    memory.observe(up, target, ~yes)  # a prototype's first pixels count though they are classified wrong …
    memory.step()
    torch.testing.assert_close(memory.prototypes[0], up)  # … and place it
    right = torch.tensor([[1.0, 0.0]])
    memory.observe(right, target, ~yes)
    memory.step()
    torch.testing.assert_close(memory.prototypes[0], up)  # later ones only if they are right
    memory.observe(right, target, yes)
    memory.step()
    momentum = 2 / 11
    torch.testing.assert_close(memory.prototypes[0], F.normalize(momentum * up + (1 - momentum) * right, dim=1))


def test_random_start_is_only_left_by_momentum() -> None:
    memory = PrototypeMemory(2, 2, 4, momentum=0.999, momentum_warmup=0, init="random")
    before = memory.prototypes.clone()
    observe(memory)
    memory.step()
    assert (memory.prototypes * before).sum(2).min() > 0.999


def test_absent_classes_all_ignored_and_wrong_pixels_leave_prototypes_alone() -> None:
    memory = PrototypeMemory(3, 2, 4, init="random")
    before = memory.prototypes.clone()
    embeddings = F.normalize(torch.randn(10, 4), dim=1)
    member = cluster(torch.rand(10, 2), torch.full((10,), -1), 3).member
    memory.observe(embeddings, member, torch.ones(10, dtype=torch.bool))
    memory.observe(embeddings, torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool))
    memory.step()
    assert (memory.prototypes == before).all()
    assert memory.updates.sum() == 0


def test_update_between_forward_and_backward() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(4, 3, num_prototypes=2)
    output = head(torch.randn(1, 4, 3, 3))
    observe(head.memory)
    head.memory.step()
    output.logits.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "kmeans"}, "init: expected"),
        ({"assignment": "soft"}, "assignment: expected"),
        ({"momentum": 1.5}, "momentum in"),
        ({"num_prototypes": 0}, "at least one"),
    ],
)
def test_bad_memory(arguments: dict, message: str) -> None:
    with pytest.raises(ProtosegError, match=message):
        PrototypeMemory(**{"num_classes": 2, "num_prototypes": 2, "dim": 4, **arguments})


def test_atrous_head_adds_up_its_convolutions() -> None:
    """As AdaptSegNet's code: those of dilation 6 and 12, straight to the classes."""
    torch.manual_seed(0)
    head, features = AtrousHead(4, 3), torch.randn(1, 4, 20, 30)
    first, second = (
        F.conv2d(features, conv.weight, conv.bias, padding=d, dilation=d)
        for conv, d in zip(head.branches, (6, 12), strict=True)
    )
    torch.testing.assert_close(head(features).logits, first + second)


def test_bad_head() -> None:
    with pytest.raises(ProtosegError, match="layernorm"):
        PrototypeHead(4, 3, logits="softmax")
    with pytest.raises(ProtosegError, match="temperature > 0"):
        PrototypeHead(4, 3, temperature=0)
