"""Two ranks adapt as one process on the concatenated batch does: loss, student, teacher, prototypes and queues."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protoseg.distributed import all_reduce_, world_size
from protoseg.losses import CrossEntropy, FeatureDistance, MixedCrossEntropy
from protoseg.losses.contrast_target import PrototypeGuidedContrast
from protoseg.models.segmentor import Segmentor
from protoseg.nn import ParametricHead, PrototypeHead
from protoseg.training import AdaptationModule, moves
from protoseg.training.moves import ClassMix
from protoseg.types import AdaptationBatch, Batch, LabelSpace
from tests.losses.test_contrast_distributed import no_draws
from tests.two_ranks import TwoRanks

C, B, SIZE, STEPS = 4, 4, 32, 3
RELIABLE = 0.4
SPACE = LabelSpace("toy", ("a", "b", "c", "d"), tuple((i, i, i) for i in range(C)), things=("c", "d"))  # type: ignore[arg-type]


class ToyEncoder(nn.Module):
    channels, strides, mean, std = [6], [4], (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image).tanh()]


class ToyDecoder(nn.Module):
    out_channels, stride = 6, 4

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(features[0])


def without_norms(module: nn.Module) -> nn.Module:
    """BatchNorm of a rank sees its own images only; SyncBatchNorm needs a GPU."""
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(child, nn.BatchNorm2d) else without_norms(child))
    return module


def build(head: str) -> AdaptationModule:
    torch.manual_seed(0)
    make = partial(PrototypeHead, num_prototypes=2, temperature=0.7) if head == "prototype" else ParametricHead
    model = Segmentor(ToyEncoder(), ToyDecoder, make, C)  # type: ignore[arg-type]
    module = AdaptationModule(
        model=without_norms(model),
        label_space=SPACE,
        losses={"ce": CrossEntropy()},
        optimizer=torch.optim.SGD,
        schedule=torch.optim.lr_scheduler.ConstantLR,
        source_terms={"fd": FeatureDistance(min_ratio=0.3)},
        terms={"mixed": MixedCrossEntropy(), "contrast": contrast()},
        threshold=RELIABLE,
        mix=ClassMix(jitter=0.0, blur=False),
    ).double()
    without_norms(module)
    module._trainer = SimpleNamespace(log_every_n_steps=10**9, accumulate_grad_batches=1, global_step=1)  # type: ignore[assignment]
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module.train()


def contrast() -> PrototypeGuidedContrast:
    """Every pixel an anchor and all of them queued, so that no choice is left to chance."""
    pixels = B * (SIZE // 4) ** 2
    return PrototypeGuidedContrast(
        weight=1.0,
        dim=4,
        reliable=RELIABLE,
        anchors=pixels,
        num_prototypes=2,
        low_rank=2,
        per_step=pixels,
        queue_length=4 * pixels,
    )


def images(step: int) -> AdaptationBatch:
    g = torch.Generator().manual_seed(step)
    label = torch.randint(0, C, (B, SIZE // 4, SIZE // 4), generator=g)
    label[0, :3], label[1, label[1] == 3] = -1, 0
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)

    def batch(label: Tensor) -> Batch:
        image = torch.randint(0, 256, (B, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
        return Batch(image, label, torch.full((B, 2), SIZE), ["x"] * B)

    return AdaptationBatch(batch(label), batch(torch.full_like(label, -1)))


def part_of(batch: AdaptationBatch, part: slice) -> AdaptationBatch:
    return AdaptationBatch(*(Batch(*(None if field is None else field[part] for field in domain)) for domain in batch))


def run(part: slice, head: str) -> dict[str, Any]:
    """Three steps, with all that is random fixed: the mixing, and what is drawn of the queues (everything)."""
    with no_draws() as patch:
        patch.setattr(moves, "class_mix_mask", lambda label, classes, *choice: label % 2 == 0)
        return steps(build(head), part)


def steps(module: AdaptationModule, part: slice) -> dict[str, Any]:
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for step in range(STEPS):
        outputs = module.training_step(part_of(images(step), part), step)
        optimizer.zero_grad()
        outputs["loss"].backward()
        for p in module.parameters():
            if p.grad is not None:
                p.grad.copy_(all_reduce_(p.grad) / world_size())  # what DDP does
        optimizer.step()
        module.after_optimizer_step()
        module._waiting = []
        module._trainer.global_step = step + 2  # type: ignore[union-attr, misc]
        losses.append(all_reduce_(outputs["loss"].detach().clone()) / world_size())
    # A queue's order is random, what it holds is not.
    state = {n: x.sort(1).values if n.endswith("queue.features") else x for n, x in module.state_dict().items()}
    return {"losses": torch.stack(losses), **state}


def on_rank(rank: int, head: str) -> dict[str, Any]:
    return run(slice(0, 2) if rank == 0 else slice(2, B), head)


@pytest.mark.parametrize("head", [pytest.param("parametric", marks=pytest.mark.slow), "prototype"])
def test_two_ranks_equal_one_process(two_ranks: TwoRanks, head: str) -> None:
    one = run(slice(None), head)
    assert one["teacher.n_averaged"] == STEPS + 1
    assert one["terms.contrast.reliable_queue.fill"].sum() > 0
    assert one["terms.contrast.unreliable_queue.fill"].sum() > 0
    for two in two_ranks(on_rank, head):
        assert two.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
