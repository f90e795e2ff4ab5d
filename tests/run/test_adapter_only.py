"""``adapter_only=true``: checkpoints without the frozen encoder's weights, opened where these are, else refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

import protoseg
from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.models.encoders import TimmEncoder
from protoseg.models.weights import weights_at_hand
from protoseg.run.build import build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import leave_out_frozen, run_training
from protoseg.trained import HASH, digest, open_file, unmoved
from protoseg.types import LabelSpace, ProtosegError
from tests.conftest import TINY

SPACE = LabelSpace("own", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
VIT = (
    *(word for word in TINY if "encoder" not in word and "decoder" not in word),
    *("encoder=vit_small", "encoder.name=test_vit", "encoder.pyramid_channels=8", "decoder=fcn", "decoder.width=8"),
)
KINDS = {"rein": "encoder.rein_tokens=4", "lora": "encoder.lora_rank=2", "freeze": "encoder.freeze=true"}
Configure = Callable[..., DictConfig]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights file in timm's names."""
    torch.manual_seed(5)
    state = TimmEncoder("test_vit").model.state_dict()
    torch.save({name.removeprefix("model."): value for name, value in state.items()}, tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def saved(configure: Configure, folder: Path, *words: str) -> tuple[Any, Path]:
    """A module as it begins, and a checkpoint of what has learned of it."""
    module = build_module(configure("train", *VIT, "adapter_only=true", *words), SPACE)
    torch.nn.init.normal_(module.model.head.projection[0].weight)
    leave_out_frozen(module, folder / "a.ckpt")
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    save_checkpoint(content, folder / "a.ckpt")
    return module, folder / "a.ckpt"


@pytest.mark.parametrize("kind", ["rein", *(pytest.param(k, marks=pytest.mark.slow) for k in ("lora", "freeze"))])
def test_what_is_left_out_is_what_stays_and_comes_back(
    kind: str, configure: Configure, tmp_path: Path, weights: Path
) -> None:
    module, file = saved(configure, tmp_path, KINDS[kind], f"encoder.weights={weights}", "method=dacs")
    kept = read_checkpoint(file)["state_dict"]
    own = {name.removeprefix("model.") for name in kept if name.startswith("model.encoder.model.")}
    learned = {name for name, p in module.model.named_parameters() if p.requires_grad}
    assert own == {name for name in learned if name.startswith("encoder.model.")}
    assert not any(name.startswith("teacher.module.encoder.model.") and name[15:] not in own for name in kept)
    content = open_file(file).content
    assert HASH not in content["protoseg"]
    first = module.state_dict()
    assert content["state_dict"].keys() == first.keys()
    assert all(torch.equal(value, first[name]) for name, value in content["state_dict"].items())
    image = torch.rand(3, 64, 96)
    with torch.no_grad():
        wanted = module.model.eval()(image[None]).logits
        assert torch.equal(protoseg.load(file, device="cpu").network(image[None]).logits, wanted)
    again = protoseg.load(file, device="cpu").save_pretrained(tmp_path / "whole")  # holds everything
    weights.unlink()
    assert protoseg.load(again, device="cpu").predict(image).labels.shape == (64, 96)
    with pytest.raises(ProtosegError, match=rf"'test_vit': expected a file .*its weights \({weights}, there or in"):
        protoseg.load(file)


def test_the_feature_distance_keeps_no_frozen_weights_either(
    configure: Configure, tmp_path: Path, weights: Path
) -> None:
    things = "+method.source_terms.feature_distance.classes=[a]"
    words = (KINDS["rein"], f"encoder.weights={weights}", "method=daformer", "data=streets_day_to_dusk", things)
    module, file = saved(configure, tmp_path, *words)
    term = module.losses.feature_distance
    reference, mine = (dict(part.named_parameters()) for part in (term.reference, module.model.encoder))
    held = {name: value for name, value in reference.items() if value is mine[name]}
    assert {name for name, value in mine.items() if not value.requires_grad} == held.keys()
    kept = read_checkpoint(file)["state_dict"]
    within = "losses.feature_distance.reference."
    assert {name for name in kept if name.startswith(within)} == {within + name for name in reference.keys() - held}
    whole = module.state_dict()
    module.load_state_dict(open_file(file).content["state_dict"])
    before = {f"{within}{name}": value.clone() for name, value in held.items()}  # of versions that kept them
    module.load_state_dict(whole | before)
    assert all(torch.equal(value, mine[name]) for name, value in held.items())


def trained(configure: Configure, run: Path, weights: Path, *words: str) -> dict[str, Tensor]:
    """Weights after two steps, a stop, and two more."""
    shutil.rmtree(run, ignore_errors=True)
    for steps in (2, 4):
        more = (f"encoder.weights={weights}", "resume=auto", f"trainer.max_steps={steps}")
        run_training(configure("train", *VIT, *words, *more))
    return open_file(run / "checkpoints/last.ckpt").content["state_dict"]


@pytest.mark.slow
def test_resumed(configure: Configure, tmp_path: Path, weights: Path) -> None:
    after = trained(configure, tmp_path / "run", weights, KINDS["rein"], "adapter_only=true")
    assert HASH in read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["protoseg"]
    first = TimmEncoder("test_vit", weights=weights).state_dict()
    assert all(torch.equal(after[f"model.encoder.{n}"], v) for n, v in first.items() if n.startswith("model."))
    assert after["model.encoder.rein.delta.weight"].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_as_a_whole_one(kind: str, configure: Configure, tmp_path: Path, weights: Path) -> None:
    """Resumed, evaluated and begun from, to the bit."""
    states, scores, run = [], [], tmp_path / "run"
    for only in ("true", "false"):
        states.append(trained(configure, run, weights, KINDS[kind], f"adapter_only={only}"))
        file = shutil.copy(run / "checkpoints/last.ckpt", tmp_path / f"{only}.ckpt")
        scores.append(run_evaluation(configure("evaluate", f"ckpt_path={file}", "save=[]")))
        shutil.rmtree(run)
        run_training(configure("train", *VIT, KINDS[kind], "encoder.pretrained=false", f"init_from={file}"))
        states.append(read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"])
    assert scores[0] == scores[1]
    for one, other in (states[::2], states[1::2]):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_cannot_be_read_again_is_refused_before_the_training(
    configure: Configure, tmp_path: Path, weights: Path
) -> None:
    module = build_module(configure("train", *VIT, "encoder.pretrained=false"), SPACE)
    with pytest.raises(ProtosegError, match=r"adapter_only=true: expected a frozen encoder, got one that learns"):
        leave_out_frozen(module, tmp_path / "a.ckpt")
    module = build_module(configure("train", *VIT, "encoder.pretrained=false", "encoder.freeze=true"), SPACE)
    with pytest.raises(ProtosegError, match=r"expected a file .* \(encoder\.weights=FILE"):
        leave_out_frozen(module, tmp_path / "a.ckpt")
    module, _ = saved(configure, tmp_path, "encoder.freeze=true", f"encoder.weights={weights}")
    with torch.no_grad():  # as by init_from
        module.model.encoder.model["model"].blocks[0].mlp.fc1.weight[0, 0] += 1e-3
    with pytest.raises(ProtosegError, match=r"expected the weights of its frozen encoder, got others in"):
        leave_out_frozen(module, tmp_path / "a.ckpt")


def test_a_stranger_builds_no_more_than_the_file_has(configure: Configure, tmp_path: Path, weights: Path) -> None:
    _, file = saved(configure, tmp_path, "encoder.freeze=true", f"encoder.weights={weights}")
    content = torch.load(file, weights_only=True)
    for values, message in (
        ({"name": "vit_giant_patch14_dinov2"}, "far larger than its weights"),
        ({"_target_": "os.system"}, "is not one of the classes that a checkpoint may build"),
        ({"weights": "/etc/passwd"}, "its encoder cannot be built"),
    ):
        own = content["protoseg"]
        config = own["config"] | {"encoder": own["config"]["encoder"] | values}
        save_checkpoint(content | {"protoseg": own | {"config": config}}, tmp_path / "b.ckpt")
        with pytest.raises(ProtosegError, match=message):
            open_file(tmp_path / "b.ckpt")


def test_weights_of_the_package_and_of_timms_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lite = {"name": "tf_efficientnet_lite0", "weights": None, "pretrained": True}
    file = weights_at_hand(lite, tmp_path)
    states = [
        TimmEncoder("tf_efficientnet_lite0", **source, freeze=True)
        for source in ({"pretrained": True}, {"weights": file})
    ]
    assert digest(unmoved(states[0])) == digest(unmoved(states[1]))
    assert digest(unmoved(TimmEncoder("tf_efficientnet_lite0", freeze=True))) != digest(unmoved(states[0]))
    asked, cached = [], tmp_path / "x.safetensors"
    cached.touch()

    def cache(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return str(cached) if "dinov2" in repository else None

    monkeypatch.setattr("protoseg.models.weights.try_to_load_from_cache", cache)
    dino = {"name": "vit_small_patch14_dinov2", "pretrained": True}
    assert weights_at_hand(dino, tmp_path) == cached
    assert asked == [("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors")]
    with pytest.raises(ProtosegError, match=r"\(encoder\.weights=FILE, or `hf download timm/vit_small_patch16_dinov3"):
        weights_at_hand(dino | {"name": "vit_small_patch16_dinov3"}, tmp_path)
    for other in ({}, {"variant": "b0", "pretrained": True}, {"name": "no_such_model", "pretrained": True}):
        with pytest.raises(ProtosegError, match=r"expected a file .* \(encoder\.weights=FILE"):
            weights_at_hand(other, tmp_path)


def test_the_hash_is_of_the_values_in_order_whatever_their_dtype_and_layout() -> None:
    weight = torch.arange(24.0).view(1, 2, 3, 4)
    assert digest({"w": weight}) == digest({"w": weight.to(memory_format=torch.channels_last)})
    assert digest({"w": weight.bfloat16()}) == digest({"w": weight.bfloat16().clone()}) != digest({"w": weight})
    assert digest({"w": torch.tensor(3)}) != digest({"w": torch.tensor(4)})
