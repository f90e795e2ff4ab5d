"""The mathematics of the Gaussian mixture head, against torch.distributions, plain loops and the prototype head."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gaussian_mixture"))

from gaussian_mixture import GaussianMixtureHead, GaussianMixtures

from protoseg.functional.similarity import DenseSimilarities
from protoseg.nn.prototype_memory import Observation
from protoseg.nn.teacher import EMATeacher
from protoseg.types import ProtosegError
from tests.two_ranks import TwoRanks

C, K, D, N = 3, 4, 6, 200


def unit(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=random, dtype=torch.float64), dim=-1)


def labels(n: int = N, seed: int = 1) -> Tensor:
    label = torch.randint(0, C, (n,), generator=torch.Generator().manual_seed(seed))
    label[::9] = -1
    return label


def mixtures(k: int = K, **options: float) -> GaussianMixtures:
    torch.manual_seed(0)
    memory = GaussianMixtures(C, k, D, **options).double()
    memory.prototypes.copy_(unit(C, k, D, seed=2))
    memory.variances.copy_(0.05 + torch.rand(C, k, D, generator=torch.Generator().manual_seed(3)) / D)
    return memory


def observation(memory: GaussianMixtures, x: Tensor, label: Tensor) -> Observation:
    own = DenseSimilarities(memory.log_joint(x)).own(label)
    return Observation(memory, x, own, label, label == 0, memory.balance(own, label).member)


def test_log_density_is_that_of_torch_distributions() -> None:
    memory, x = mixtures(), unit(N, D)
    expected = [
        MixtureSameFamily(
            Categorical(torch.ones(K, dtype=torch.float64)), Independent(Normal(mean, variance.sqrt()), 1)
        ).log_prob(x)
        for mean, variance in zip(memory.prototypes, memory.variances, strict=True)
    ]
    torch.testing.assert_close(memory.log_joint(x).logsumexp(2), torch.stack(expected, 1), atol=1e-10, rtol=0)


def naive_step(memory: GaussianMixtures, x: Tensor, label: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Means and variances after an EM step, class by class and component by component."""
    means, variances = memory.prototypes.clone(), memory.variances.clone()
    for c in range(C):
        own = x[label == c]
        if not len(own):
            continue
        density = [Independent(Normal(means[c, k], variances[c, k].sqrt()), 1).log_prob(own) for k in range(K)]
        plan = torch.stack(density, 1).softmax(1)
        for _ in range(memory.rounds):
            plan = plan / plan.sum(0)
            plan = plan / plan.sum(1, keepdim=True)
        for k in range(K):
            weight = plan[:, k : k + 1]
            mean = F.normalize((weight * own).sum(0), dim=0)
            means[c, k] = F.normalize(momentum * means[c, k] + (1 - momentum) * mean, dim=0)
            spread = (weight * (own - means[c, k]).square()).sum(0) / weight.sum()
            variances[c, k] = momentum * variances[c, k] + (1 - momentum) * spread.clamp_min(memory.min_variance)
    return means, variances


@pytest.mark.parametrize("placed", [False, True], ids=["first", "later"])
def test_a_step_is_that_of_a_plain_loop(placed: bool) -> None:
    """The first step takes over the pixels' own moments; class 2 has no pixel and stays."""
    memory, x, label = mixtures(momentum=0.9, momentum_warmup=0, min_variance=0.15), unit(N, D), labels() % 2
    label[::9] = -1
    memory.updates.fill_(int(placed))
    means, variances = naive_step(memory, x, label, 0.9 if placed else 0.0)
    memory.observe_accumulated([observation(memory, x, label)])
    memory.step()
    torch.testing.assert_close(memory.prototypes, means, atol=1e-10, rtol=0)
    torch.testing.assert_close(memory.variances, variances, atol=1e-10, rtol=0)
    assert placed or (variances[:2] == 0.15).any()
    torch.testing.assert_close(memory.occupancy.sum(1), label[label >= 0].bincount(minlength=C).double())
    assert not memory.pending_squares.any()


def test_likelihood_rises() -> None:
    """Twenty steps on pixels of two tight groups per class find them: momentum 0, so that it is EM."""
    memory = mixtures(2, momentum=0.0)
    centres, label = unit(C, 2, D, seed=7), torch.arange(600) % C
    noise = 0.05 * torch.randn(600, D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    x = F.normalize(centres[label, torch.arange(600) // C % 2] + noise, dim=1)

    def likelihood() -> float:
        return float(memory.log_joint(x).logsumexp(2)[torch.arange(600), label].mean())

    before = likelihood()
    for _ in range(20):
        memory.observe_accumulated([observation(memory, x, label)])
        memory.step()
    assert likelihood() > before + 3
    nearest = (memory.prototypes @ centres.transpose(1, 2)).amax(2)
    assert nearest.min() > 0.99


def test_one_component_of_one_variance_is_the_prototype_head() -> None:
    """softmax of log N(x; mu, v I) over classes is that of the cosine / v: ProtoSeg at temperature v."""
    memory, x = mixtures(1), unit(N, D)
    memory.variances.fill_(0.1)
    logits = memory.log_joint(x).logsumexp(2)
    cosines = memory.similarity(x).scores
    torch.testing.assert_close(logits.softmax(1), (cosines / 0.1).softmax(1), atol=1e-10, rtol=0)


def test_far_components_get_their_share() -> None:
    """Log densities hundreds apart, which round to nothing in fp32: the plan stays balanced."""
    memory = mixtures(2)
    own = torch.tensor([[0.0, -300.0]]).repeat(20, 1) + torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    share = memory.responsibilities(own, torch.zeros(20, dtype=torch.int64))
    torch.testing.assert_close(share.sum(0), torch.tensor([10.0, 10.0], dtype=torch.float64), atol=0.5, rtol=0)


def test_the_network_learns_and_the_gaussians_do_not() -> None:
    head = GaussianMixtureHead(5, C, K, D)
    features = torch.randn(2, 5, 4, 4, requires_grad=True)
    output = head(features)
    assert output.logits.shape == (2, C, 4, 4)
    assert output.embeddings.shape == (2, D, 4, 4)
    before = {name: buffer.clone() for name, buffer in head.memory.named_buffers()}
    F.cross_entropy(output.logits, torch.zeros(2, 4, 4, dtype=torch.int64)).backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert not list(head.memory.parameters())
    assert all(not buffer.requires_grad and buffer.grad is None for buffer in head.memory.buffers())
    assert all(torch.equal(before[name], buffer) for name, buffer in head.memory.named_buffers())


def test_assignment_takes_the_grids_labels() -> None:
    """The own class's log joints of every cell, for the targets of terms and for EM."""
    head = GaussianMixtureHead(5, C, K, D).eval()
    output = head(torch.randn(1, 5, 3, 3))
    label = torch.full((1, 12, 12), -1)
    label[:, :4, :4] = 2
    clustering, seen = head.memory.assign(output, label, stride=4)
    x = output.embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(seen.own[0], head.memory.log_joint(x)[0, 2])
    assert clustering.target[0] // K == 2
    assert clustering.target[1:].unique().tolist() == [-1]


def test_state_goes_with_the_teacher_and_the_checkpoint() -> None:
    head = GaussianMixtureHead(5, C, K, D)
    teacher = EMATeacher(head, alpha=0.5)
    head.memory.variances.fill_(1.0)
    teacher.update_parameters(head)
    assert torch.allclose(teacher.module.memory.variances, torch.tensor((1 / D + 1) / 2))
    assert {"prototypes", "variances", "updates", "occupancy"} == set(head.memory.state_dict())


def test_wrong_variance_is_told() -> None:
    with pytest.raises(ProtosegError, match="min_variance > 0, got 0"):
        GaussianMixtures(C, K, D, min_variance=0)


def run(parts: list[slice]) -> Tensor:
    memory = mixtures(momentum=0.9)
    for step in range(3):
        x, label = unit(N, D, seed=10 + step), labels(seed=20 + step)
        memory.observe_accumulated([observation(memory, x[part], label[part]) for part in parts])
        memory.step()
    return torch.cat([memory.prototypes, memory.variances])


def on_rank(rank: int) -> Tensor:
    return run([slice(0, 50), slice(50, 130)] if rank == 0 else [slice(130, 190), slice(190, N)])


@pytest.mark.slow
def test_two_ranks_with_micro_batches_equal_one_process(two_ranks: TwoRanks) -> None:
    one = run([slice(None)])
    assert math.isfinite(float(one.sum()))
    for two in two_ranks(on_rank):
        torch.testing.assert_close(two, one, atol=1e-10, rtol=0)
