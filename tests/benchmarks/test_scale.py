"""The counts behind the scale on paper: operations, bytes, memory, collectives; and what is made of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import COPY, FP32, CountOperations
from benchmarks.scale import LATENCY, SCALED, WIRE, Counts, Scaled, Setting, count, main, predict, supervised
from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Term
from protoseg.nn import PrototypeHead
from protoseg.types import SegOutput


class Small(nn.Module):
    """As little of a network as the step asks for."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8))
        self.head = PrototypeHead(8, 5, 3)

    def forward(self, image: Tensor) -> SegOutput:
        return self.head(self.maps(image.float()))


def test_a_product_and_its_gradient_are_counted() -> None:
    n, d, m = 300, 200, 100
    with FakeTensorMode(), CountOperations() as counter:
        a, b = torch.empty(n, d, requires_grad=True), torch.empty(d, m)
        (a @ b).sum().backward()
    assert counter.flops == 2 * 2 * n * d * m
    assert counter.bytes >= 4 * 2 * (n * d + d * m + n * m)
    assert counter.seconds >= counter.flops / FP32
    assert 4 * (n * d + d * m + n * m) <= counter.peak <= 4 * 2 * (n * d + d * m + n * m)


def test_memory_is_counted_until_it_is_let_go() -> None:
    with FakeTensorMode(), CountOperations() as counter:
        a = torch.empty(1000)
        for _ in range(5):
            b = a + 1
            del b
        assert counter.alive == 4000
        assert a.view(10, 100).shape == (10, 100)  # a view is neither memory nor traffic
        moved = counter.bytes
    assert counter.peak == 8000
    assert moved == 5 * 8000
    assert counter.seconds == pytest.approx(moved / COPY)


def test_a_step_of_several_processes() -> None:
    terms: list[Term] = [CrossEntropy(), PixelPrototypeContrast(), PixelPrototypeDistance()]
    make: Any = Small
    setting = Setting(make, partial(supervised, terms), (2, 64, 64), True, 20, 12)
    alone, one_of_eight = count(setting), count(setting, 8)
    model = Small()
    classes, prototypes, channels = model.head.memory.prototypes.shape
    assert alone.parameters == sum(p.numel() for p in model.parameters())
    assert alone.batch_norms == [8, 8]  # one of them is the head's
    assert alone.counts.flops == one_of_eight.counts.flops > 0
    assert alone.counts.collective_bytes == 0
    # Three rounds of Sinkhorn, the sums of embeddings and their counts, and a count for each loss.
    moved = 4 * (3 * classes * prototypes + classes * prototypes * (channels + 1) + 3)
    assert one_of_eight.counts.collective_bytes == pytest.approx(2 * 7 / 8 * moved)


def test_what_the_wire_adds() -> None:
    scaled = Scaled(Counts(0, 0, 0.1, 0, 4, 0.0), 10**9, [64, 128])
    assert predict(scaled, 2.0, 1, sync_norms=True) == (0.2, 0, 0, 0)
    found = predict(scaled, 2.0, 64, sync_norms=True)
    assert found.gradient_bytes == 2 * 63 / 64 * 4e9
    exposed = found.gradient_bytes / WIRE[64] - 0.1
    assert found.waiting == pytest.approx(exposed + 8 * LATENCY[64] + found.norm_bytes / WIRE[64])
    assert found.seconds == pytest.approx(0.2 + found.waiting)
    assert predict(scaled, 2.0, 8, sync_norms=False).norm_bytes == 0


@pytest.mark.slow
def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["scale", "--dry"])
    main()
    shown = capsys.readouterr().out
    for name in SCALED:
        assert shown.count(name) == 2
