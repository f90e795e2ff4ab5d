"""LoRA: nothing changes at the start, only the updates learn, and merged it is a plain network."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from protoseg.models.adapters import merge
from protoseg.models.decoders import SegFormerDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import LinearHead
from protoseg.training.optim import build_optimizer
from protoseg.types import ProtosegError

IMAGE = torch.rand(2, 3, 64, 96)


def network(lora_rank: int | None = None, name: str = "test_vit", **options: Any) -> Segmentor:
    torch.manual_seed(0)
    encoder = TimmEncoder(name, pyramid_channels=8, lora_rank=lora_rank, **options)
    return Segmentor(encoder, partial(SegFormerDecoder, width=8), LinearHead, 3)


def learned(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def step(model: Segmentor, times: int = 2) -> None:
    """Of the second the first factor learns too: its gradient is zero while the other one is."""
    optimizer = build_optimizer(model, torch.optim.AdamW, lr=0.05)
    for _ in range(times):
        optimizer.zero_grad()
        model(IMAGE).logits.square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224"])
def test_nothing_changes_at_the_start(name: str) -> None:
    depth = {} if name == "test_vit" else {"depth": 3}
    encoder = network(4, name, **depth).encoder.eval()
    plain = copy.deepcopy(encoder)
    merge(plain)
    assert not any("parametrizations" in key for key in plain.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(IMAGE), plain(IMAGE), strict=True))


def test_only_the_updates_learn_and_merged_it_is_the_same_network() -> None:
    model = network(4).train()
    before, first = learned(model), copy.deepcopy(model.state_dict())
    of_encoder = {key.rsplit(".", 1)[1] for key in before if key.startswith("encoder.model.")}
    assert of_encoder == {"down", "up"}
    step(model)
    after = model.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before if key.startswith("encoder.model."))
    assert all(torch.equal(first[key], after[key]) for key in first if "model." in key and key not in before)
    merged = copy.deepcopy(model.eval())
    merge(merged)
    assert merged.encoder.state_dict().keys() == network().encoder.state_dict().keys()
    with torch.no_grad():
        assert_close(merged(IMAGE).logits, model(IMAGE).logits, atol=1e-5, rtol=0)
        assert not torch.allclose(network()(IMAGE).logits, model(IMAGE).logits, atol=1e-3)
    again = network(4)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(IMAGE).logits, model(IMAGE).logits)


@pytest.mark.slow
def test_the_exported_file_is_a_plain_network(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="pip install 'protoseg[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'protoseg[onnx]'")
    from protoseg.export import compare_onnx, export_onnx
    from protoseg.types import LabelSpace

    model, space = network(4), LabelSpace("own", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    step(model)
    merged = copy.deepcopy(model.eval())
    merge(merged)
    for name, each in (("lora", model), ("merged", merged)):
        export_onnx(each, space, tmp_path / name, (64, 96))
    assert compare_onnx(model, tmp_path / "lora", [(64, 96)]).logits < 1e-5
    operators = [[node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in ("lora", "merged")]
    assert operators[0] == operators[1]


def test_wrong_settings_are_one_sentence() -> None:
    for name, options in (("test_vit", {"lora_rank": 0}), ("tf_efficientnet_lite0", {"lora_rank": 4})):
        with pytest.raises(ProtosegError, match=r"lora_rank: expected 1 or more, and an encoder with attention"):
            TimmEncoder(name, **options)
    with pytest.raises(ProtosegError, match="expected one of freeze, lora_rank, rein_tokens at most, got"):
        TimmEncoder("test_vit", lora_rank=4, freeze=True)
