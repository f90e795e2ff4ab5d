"""Rein: nothing changes at the start, the tokens alone learn, and numbers are those of the paper's equations."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from protoseg.models.adapters import RANK, Rein
from protoseg.models.decoders import SegFormerDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import LinearHead
from protoseg.training.optim import build_optimizer
from protoseg.types import ProtosegError

IMAGE = torch.rand(2, 3, 64, 96)


def network(tokens: int | None = 7, name: str = "test_vit", **options: Any) -> Segmentor:
    torch.manual_seed(0)
    encoder = TimmEncoder(name, pyramid_channels=8, rein_tokens=tokens, **options)
    return Segmentor(encoder, partial(SegFormerDecoder, width=8), LinearHead, 3)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_nothing_changes_at_the_start(name: str) -> None:
    depth = {} if name == "test_vit" else {"depth": 3}
    encoder, plain = network(7, name, **depth).encoder.eval(), TimmEncoder(name, pyramid_channels=8, **depth).eval()
    plain.load_state_dict({key: value for key, value in encoder.state_dict().items() if not key.startswith("rein.")})
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(IMAGE), plain(IMAGE), strict=True))
        encoder.rein.delta.bias.fill_(1.0)
        assert not torch.allclose(encoder(IMAGE)[0], plain(IMAGE)[0], atol=1e-3)


def test_numbers_of_the_equations_cell_by_cell() -> None:
    rein = Rein(blocks=2, width=8, tokens=5, prefix=1).double()
    for parameter in rein.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(2, 4, 8, dtype=torch.double)
    wanted = features.clone()
    tokens = rein.down[1] @ rein.up[1]
    assert tokens.shape == (5, 8)
    assert rein.down.shape[-1] == RANK
    for image in range(2):
        for cell in (1, 2, 3):  # 0 is the class token
            f = features[image, cell]
            shares = torch.stack([(f * token).sum() / 8**0.5 for token in tokens]).softmax(0)
            change: Tensor = sum(shares[i] * rein.value(tokens[i]) for i in range(1, 5))  # type: ignore[assignment]
            wanted[image, cell] = f + rein.delta(change + f)
    assert_close(rein(1, None, (), features), wanted)


def test_only_the_tokens_learn_and_a_copy_has_its_own() -> None:
    model = network().train()
    copied, first = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    learned = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
    of_rein = {"down", "up", "value.weight", "value.bias", "delta.weight", "delta.bias"}
    assert {name for name in learned if not name.startswith("pyramid.")} == {f"rein.{name}" for name in of_rein}
    optimizer = build_optimizer(model, torch.optim.AdamW, lr=0.05, encoder_lr=0.001)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.encoder.rein.parameters()} == {0.05}  # as the pyramid: no file brings them
    for _ in range(2):  # of the second the tokens learn too: their gradient is zero while delta is
        optimizer.zero_grad()
        model(IMAGE).logits.square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(first[key], after[key]) for key in first if key.startswith("encoder.model."))
    assert not any(torch.equal(first[f"encoder.rein.{name}"], after[f"encoder.rein.{name}"]) for name in of_rein)
    with torch.no_grad():
        assert not torch.allclose(copied.eval()(IMAGE).logits, model.eval()(IMAGE).logits, atol=1e-3)
        copied.load_state_dict(after)
        assert torch.equal(copied(IMAGE).logits, model(IMAGE).logits)


def test_small() -> None:
    """At ViT-L: 24 blocks of tokens and two layers; the paper's count, 2.99 M, has what links tokens to queries too."""
    with torch.device("meta"):
        rein = Rein(24, 1024, 100, 1)
    assert sum(p.numel() for p in rein.parameters()) == 24 * (100 + 1024) * 16 + 2 * (1024 * 1024 + 1024) == 2_530_816


@pytest.mark.slow
def test_the_exported_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="pip install 'protoseg[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'protoseg[onnx]'")
    from protoseg.export import compare_onnx, export_onnx
    from protoseg.types import LabelSpace

    model, space = network().eval(), LabelSpace("own", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    torch.nn.init.normal_(model.encoder.rein.delta.weight, std=0.1)
    export_onnx(model, space, tmp_path / "model.onnx", (64, 96))
    assert compare_onnx(model, tmp_path / "model.onnx", [(64, 96)]).logits < 1e-5


def test_wrong_settings_are_one_sentence() -> None:
    for name, tokens in (("test_vit", 1), ("tf_efficientnet_lite0", 4), ("swin_tiny_patch4_window7_224", 4)):
        with pytest.raises(ProtosegError, match=r"rein_tokens: expected 2 or more, and a plain ViT, got . and"):
            TimmEncoder(name, rein_tokens=tokens)
    for other in ({"freeze": True}, {"lora_rank": 4}):
        with pytest.raises(ProtosegError, match=r"expected one of freeze, lora_rank, rein_tokens at most, got"):
            TimmEncoder("test_vit", rein_tokens=4, **other)
