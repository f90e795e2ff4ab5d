"""The network under ``torch.compile``: no graph break, the same values, gradients and state."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.twins import learn_from
from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Term
from protoseg.models.decoders import FCNDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeHead

CLASSES = 5


@pytest.fixture(scope="module")
def model() -> Segmentor:
    torch.manual_seed(0)
    head = partial(PrototypeHead, num_prototypes=3)
    return Segmentor(TimmEncoder("tf_efficientnet_lite0"), partial(FCNDecoder, width=8), head, CLASSES).train()


def learned(model: Segmentor) -> dict[str, Tensor]:
    """Gradients and state after one training step."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, CLASSES, (2, 64, 64), generator=generator)
    terms: list[Term] = [CrossEntropy(), PixelPrototypeContrast(), PixelPrototypeDistance()]
    torch.manual_seed(1)  # drop path, dropout
    learn_from(model(image), model.head, terms, label, model.stride)
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: value.float() for name, value in model.state_dict().items()}


def both(model: Segmentor, backend: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    plain, compiled = copy.deepcopy(model), copy.deepcopy(model)
    compiled.compile(backend=backend, fullgraph=True, dynamic=False)
    one, other = learned(plain), learned(compiled)
    assert one.keys() == other.keys()
    return one, other


@pytest.mark.slow
def test_one_graph_and_the_same_training_step(model: Segmentor) -> None:
    one, other = both(model, "eager")
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_machine_code(model: Segmentor) -> None:
    # BatchNorm over a few values magnifies rounding, so gradients agree as a whole, not number by number.
    one, other = (torch.cat([value.flatten() for value in values.values()]) for values in both(model, "inductor"))
    assert torch.cosine_similarity(one, other, dim=0) > 0.9999
    assert (one - other).norm() < 1e-2 * one.norm()
