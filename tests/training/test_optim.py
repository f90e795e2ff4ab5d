"""Parameter groups and the poly schedule."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import timm
import timm.optim
import torch
from torch import nn

from protoseg.models.encoders import TimmEncoder
from protoseg.training.optim import build_optimizer, parameter_groups, poly_factor, poly_schedule
from protoseg.types import ProtosegError


def model() -> nn.Module:
    def part() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    return nn.Sequential(OrderedDict(encoder=part(), decoder=part(), head=part()))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_fused_on_a_cpu_unless_the_config_says_otherwise(kind: Callable[..., torch.optim.Optimizer]) -> None:
    taken = []
    for options in ({}, {"fused": False}):
        torch.manual_seed(0)
        network = model()
        optimizer = build_optimizer(network, partial(kind, **options), lr=0.1)
        assert optimizer.defaults["fused"] is (not options)
        torch.stack([parameter.square().sum() for parameter in network.parameters()]).sum().backward()
        optimizer.step()
        taken.append([*network.parameters()])
    torch.testing.assert_close(*taken)
    with torch.device("meta"):
        assert not build_optimizer(model(), kind, lr=0.1).defaults["fused"]


def test_groups() -> None:
    net = model()
    net.head[0].weight.requires_grad_(False)
    groups = {group["name"]: group for group in parameter_groups(net, 1.0, 0.1, 0.01)}
    assert {name: (g["lr"], g["weight_decay"], len(g["params"])) for name, g in groups.items()} == {
        "encoder": (0.1, 0.01, 1),
        "encoder_no_decay": (0.1, 0.0, 3),
        "decoder": (1.0, 0.01, 1),
        "decoder_no_decay": (1.0, 0.0, 6),
    }


def test_encoder_learning_rate_defaults_to_the_other() -> None:
    optimizer = build_optimizer(model(), torch.optim.SGD, lr=0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_poly_by_hand() -> None:
    factors = [poly_factor(step, 10, 0.9, 2, 0.1) for step in range(11)]
    assert factors[:3] == pytest.approx([0.1, 0.55, 1.0])
    assert factors[6] == pytest.approx(0.5**0.9)
    assert factors[10] == 0
    assert poly_factor(12, 10, 0.9, 2, 0.1) == 0


def test_released_groups_are_told_by_words_in_the_names() -> None:
    net = nn.Module()
    net.encoder = nn.ModuleDict({"norm1": nn.LayerNorm(4), "fc": nn.Linear(4, 4)})
    net.decoder = nn.BatchNorm2d(4)
    decay = {
        name: {g["name"]: sum(p.numel() for p in g["params"]) for g in parameter_groups(net, 1.0, 0.1, 0.01, words)}
        for name, words in (("daformer", ["norm"]), ("protoseg", []))
    }
    assert decay["daformer"] == {
        "encoder_no_decay": 8,
        "encoder": 16 + 4,
        "decoder": 8,
    }  # a bias is decayed, a BatchNorm too
    assert decay["protoseg"] == {"encoder": 28, "decoder": 8}


def test_mmcvs_warmup_is_a_factor_of_poly_over_all_steps() -> None:
    """mmcv 1.3: poly(t) * (1 - (1 - t / warmup) * (1 - ratio)); DAFormer's numbers."""
    total, warmup, ratio = 40_000, 1500, 1e-6
    for step in (0, 1, 750, 1499, 1500, 20_000, 39_999):
        k = 1 - (1 - step / warmup) * (1 - ratio) if step < warmup else 1
        assert poly_factor(step, total, 1.0, warmup, ratio, True) == pytest.approx((1 - step / total) * k, abs=1e-12)
    ours = poly_factor(1500, total, 1.0, warmup, ratio)
    assert ours / poly_factor(1500, total, 1.0, warmup, ratio, True) == pytest.approx(1.039, abs=1e-3)


def test_schedule_drives_every_group() -> None:
    optimizer = build_optimizer(model(), torch.optim.SGD, lr=1.0, encoder_lr=0.1)
    schedule = poly_schedule(optimizer, total_steps=4, power=1.0)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}


def test_warm_up_longer_than_training() -> None:
    optimizer = build_optimizer(model(), torch.optim.SGD, lr=1.0)
    with pytest.raises(ProtosegError, match="fewer than"):
        poly_schedule(optimizer, total_steps=5, warmup_steps=5)


def test_layer_decay_is_timms() -> None:
    """Rates of every parameter of a plain ViT against timm's grouping, whose scale is of the whole classifier."""
    net = nn.Module()
    net.encoder = TimmEncoder("test_vit", pyramid_channels=8)
    vit = timm.create_model("test_vit")
    theirs = {
        id(parameter): group["lr_scale"]
        for group in timm.optim.param_groups_layer_decay(vit, 0.05, layer_decay=0.7)
        for parameter in group["params"]
    }
    expected = {name: theirs[id(parameter)] for name, parameter in vit.named_parameters()}
    rates = {id(p): g["lr"] for g in parameter_groups(net, 1.0, 0.5, layer_decay=0.7) for p in g["params"]}
    own = {name.removeprefix("model.model."): rates[id(p)] for name, p in net.encoder.named_parameters()}
    for name, rate in own.items():
        assert rate == pytest.approx(1.0 if name.startswith("pyramid.") else 0.5 * expected[name])
    assert len(set(own.values())) == len(vit.blocks) + 2
    with pytest.raises(ProtosegError, match=r"blocks in one list .*, got another"):
        parameter_groups(model(), 1.0, layer_decay=0.7)
