"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from protoseg.models.encoders import Encoder, MiTEncoder, TimmEncoder
from protoseg.models.recompute import unmoved_statistics
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.conftest import TINY
from tests.models.test_encoders import SMALL_SWIN
from tests.training.test_resume import DROPS_PATHS, assert_same_bits

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "lite0": partial(TimmEncoder, "tf_efficientnet_lite0", drop_path_rate=0.2),
    "hrnet": partial(TimmEncoder, "hrnet_w18_small"),
    "resnet": partial(TimmEncoder, "resnet18", drop_path_rate=0.2),
    "convnext": partial(TimmEncoder, "convnext_atto", drop_path_rate=0.2),
    "swin": partial(TimmEncoder, "swin_tiny_patch4_window7_224", drop_path_rate=0.2, **SMALL_SWIN),
    "vit": partial(TimmEncoder, "test_vit", proj_drop_rate=0.1),
    "dinov3": partial(TimmEncoder, "vit_tiny_patch16_dinov3_qkvb", depth=3),
    "mit": partial(MiTEncoder, "b0"),
}


def both(name: str) -> tuple[Encoder, Encoder]:
    """An encoder of random weights, and the same one with gradient checkpointing."""
    plain, recomputing = ENCODERS[name](), ENCODERS[name](grad_checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    return plain.train(), recomputing.train()


def learned(encoder: nn.Module, size: int = 64) -> dict[str, Tensor]:
    """State and gradients after one step in which dropout and drop path drew their numbers."""
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    torch.stack([feature.square().mean() for feature in encoder(image)]).sum().backward()
    gradients = {f"gradient of {key}": p.grad for key, p in encoder.named_parameters() if p.grad is not None}
    return gradients | encoder.state_dict()


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_and_statistics_are_the_same_bits(name: str) -> None:
    plain, recomputing = both(name)
    assert differing(learned(plain), learned(copy.deepcopy(recomputing))) == []  # a teacher is a deep copy


def test_timms_own_would_move_the_statistics_twice() -> None:
    plain, _ = both("lite0")
    timms = copy.deepcopy(plain)
    timms.model.set_grad_checkpointing()
    wrong = differing(learned(plain), learned(timms))
    assert any("running_mean" in name for name in wrong)


def test_a_copy_is_on_its_own() -> None:
    """Its blocks run the copy's weights, not those of the model it was made from."""
    _, recomputing = both("lite0")
    copied = copy.deepcopy(recomputing)
    with torch.no_grad():
        for parameter in recomputing.parameters():
            parameter.zero_()
    assert all(feature.abs().sum() > 0 for feature in copied(torch.randn(2, 3, 64, 64)))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_statistics_held_still_stay_so_in_the_backward_pass(dtype: torch.dtype | None) -> None:
    """As in domain adaptation, whose backward pass comes after the forward pass of other images."""
    states = []
    for encoder in both("lite0"):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            with unmoved_statistics(encoder):
                torch.manual_seed(1)
                first = encoder(torch.ones(2, 3, 64, 64).tril())[-1].float().square().mean()
            second = encoder(torch.ones(2, 3, 64, 64).triu())[-1].float().square().mean()
        (first + second).backward()
        states.append({f"g {n}": p.grad for n, p in encoder.named_parameters() if p.grad is not None})
        states[-1] |= encoder.state_dict()
    assert differing(*states) == []


@pytest.mark.slow
def test_one_graph_under_compile() -> None:
    plain, recomputing = both("resnet")
    recomputing.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    one, other = learned(plain), learned(recomputing)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=key: f"{n}: {m}")


def kept_bytes(encoder: nn.Module) -> int:
    """What the forward pass leaves in memory for the backward pass: saved tensors, and inputs of recomputed blocks."""
    weights = {p.untyped_storage().data_ptr() for p in encoder.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    for block in encoder.modules():
        if "forward" in vars(block):
            block.register_forward_pre_hook(keep_input)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = encoder(torch.randn(2, 3, 64, 64))
    assert all(feature.requires_grad for feature in maps)  # still alive, and with them what was kept
    return sum(kept.values())


@pytest.mark.parametrize(("name", "share"), [("lite0", 0.15), ("hrnet", 0.65), ("swin", 0.15), ("mit", 0.2)])
def test_less_is_kept(name: str, share: float) -> None:
    plain, recomputing = map(kept_bytes, both(name))
    assert recomputing < share * plain


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(ProtosegError, match=r"grad_checkpointing.*regnetx_002.*false"):
        TimmEncoder("regnetx_002", grad_checkpointing=True)


@pytest.mark.slow
def test_a_whole_training_has_the_same_bits(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    tiny = [x for x in TINY if not x.startswith("head.")]
    for value in ("false", "true"):
        settings = ("trainer.max_steps=2", f"encoder.grad_checkpointing={value}", *DROPS_PATHS)
        experiment = "experiment=small_daformer"
        run_training(configure("train", experiment, *tiny, *settings, output=tmp_path / value))
    last = Path("checkpoints") / "last.ckpt"
    assert_same_bits(tmp_path / "true" / last, tmp_path / "false" / last)
