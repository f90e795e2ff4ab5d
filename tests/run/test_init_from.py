"""A new training that begins with the weights of a checkpoint of other classes, another head, or weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from protoseg.checkpoint import own_part, read_checkpoint
from protoseg.run.build import build_module, start_from
from protoseg.run.resuming import changed_settings, take_input
from protoseg.trained import open_file
from protoseg.training.base import SegmentationModule
from protoseg.types import LabelSpace, ProtosegError

SMALL = ("encoder=mit_b0", "encoder.pretrained=false", "decoder=fcn", "decoder.width=8")


def space(*classes: str) -> LabelSpace:
    return LabelSpace("own", classes, tuple((i, i, i) for i in range(len(classes))))


@pytest.fixture
def make(configure: Callable[..., DictConfig]) -> Callable[..., tuple[DictConfig, SegmentationModule]]:
    def made(classes: str, *overrides: str) -> tuple[DictConfig, SegmentationModule]:
        cfg = configure("train", *SMALL, *overrides)
        return cfg, build_module(cfg, space(*classes.split()))

    return made


Make = Callable[..., tuple[DictConfig, SegmentationModule]]


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("prototype", ["head.memory.prototypes", "head.memory.updates"]),
        ("linear", ["head.classifier.weight", "head.classifier.bias"]),
        ("protoseg", ["head.memory.prototypes", "head.logit_norm.weight"]),
    ],
)
def test_classes_of_one_name_keep_their_rows(make: Make, tmp_path: Path, head: str, rows: list[str]) -> None:
    _, first = make("a b c", f"head={head}")
    for name, value in first.model.state_dict().items():
        if name in rows:
            value.copy_(torch.arange(1, value.numel() + 1).view_as(value))
    first.save(tmp_path / "a.ckpt")
    cfg, second = make("c new a x", f"head={head}", "method=dacs", "data=streets_day_to_dusk", "seed=1")
    before = {name: value.clone() for name, value in second.model.state_dict().items()}
    said = start_from(second, read_checkpoint(tmp_path / "a.ckpt"), cfg)
    old, new = first.model.state_dict(), second.model.state_dict()
    for name in rows:
        assert torch.equal(new[name][[0, 2]], old[name][[2, 0]])
        assert torch.equal(new[name][[1, 3]], before[name][[1, 3]])
    assert all(torch.equal(new[name], old[name]) for name in new if old[name].shape == new[name].shape)
    teacher = second.teacher.module.state_dict()
    assert all(torch.equal(teacher[name], new[name]) for name in new)
    assert said.startswith(f"{len(new)} tensors taken: ")
    assert said.endswith("; 2 classes of the same name: c, a; 2 new classes: new, x")


def test_another_head_is_new_and_said(make: Make, tmp_path: Path) -> None:
    make("a b", "head=linear")[1].save(tmp_path / "a.ckpt")
    cfg, second = make("a b", "head=parametric", "head.embedding_dim=12")
    said = start_from(second, read_checkpoint(tmp_path / "a.ckpt"), cfg)
    assert "9 new: head.projection.0.weight" in said
    assert said.endswith("1 of the file not used: head.classifier.weight")
    nothing = {"state_dict": {"model.x": torch.zeros(1)}, "protoseg": own_part(None, space("a"))}
    with pytest.raises(ProtosegError, match=r"names and shapes: \d+ new: enc.*1 of the file not used: x"):
        start_from(second, nothing, cfg)


def test_a_plain_network_goes_on_with_lora(make: Make, tmp_path: Path) -> None:
    vit = ("encoder=vit_small", "encoder.name=test_vit", "encoder.pyramid_channels=8")
    _, first = make("a b", *vit)
    first.save(tmp_path / "a.ckpt")
    cfg, second = make("a b", *vit, "encoder.lora_rank=2", "seed=1")
    said = start_from(second, read_checkpoint(tmp_path / "a.ckpt"), cfg)
    image = torch.rand(1, 3, 64, 64)
    second.save(tmp_path / "b.ckpt")
    opened = open_file(tmp_path / "b.ckpt").model()
    with torch.no_grad():
        maps = [model.encoder.eval()(image) for model in (first.model, second.model, opened)]
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*maps, strict=True))
    assert "not used" not in said


def test_images_are_seen_as_the_same_encoder_was_trained(
    make: Make, configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg, first = make("a b", "+encoder.mean=[0.4,0.5,0.6]", "+encoder.std=[0.2,0.2,0.2]")
    first.save(tmp_path / "a.ckpt")
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    for encoder, mean in (("mit_b0", [0.4, 0.5, 0.6]), ("mit_b1", None)):
        cfg = configure("train", f"encoder={encoder}")
        take_input(cfg, checkpoint)
        assert cfg.encoder.get("mean") == mean
    checkpoint["protoseg"]["config"]["encoder"]["mean"] = {"_target_": "os.system", "command": "true"}
    with pytest.raises(ProtosegError, match=r"encoder\.mean\._target_: it is not allowed"):
        take_input(configure("train", "encoder=mit_b0"), checkpoint)
    with pytest.raises(ProtosegError, match="got weights alone; start a new training from them with init_from=a"):
        changed_settings("a.ckpt", checkpoint, {})


@pytest.mark.parametrize("known", [False, True])
def test_the_feature_distance_is_from_an_encoder_that_knows_something(make: Make, tmp_path: Path, known: bool) -> None:
    """From ImageNet's where the run has it; else from the file's, not from the random one in whose place that is."""
    make("a b")[1].save(tmp_path / "a.ckpt")
    things = "method.source_terms.feature_distance.classes=[a]"
    cfg, second = make("a b", "method=daformer", "data=streets_day_to_dusk", "seed=1", things)
    cfg.encoder.pretrained = known
    reference = second.losses.feature_distance.reference.state_dict()
    before = {name: value.clone() for name, value in reference.items()}
    start_from(second, read_checkpoint(tmp_path / "a.ckpt"), cfg)
    now = second.model.encoder.state_dict()
    assert all(torch.equal(reference[name], before[name] if known else now[name]) for name in now)


def test_the_feature_distance_is_through_the_pyramid_of_the_file(make: Make, tmp_path: Path) -> None:
    """A plain ViT's pyramid has no weights but the training's: the random one would draw the student back to noise."""
    vit = ("encoder=vit_small", "encoder.name=test_vit", "encoder.pyramid_channels=8", "encoder.pretrained=false")
    make("a b", *vit)[1].save(tmp_path / "a.ckpt")
    things = "method.source_terms.feature_distance.classes=[a]"
    cfg, second = make("a b", *vit, "method=daformer", "data=streets_day_to_dusk", "seed=1", things)
    cfg.encoder.pretrained = True
    reference = second.losses.feature_distance.reference.state_dict()
    before = {name: value.clone() for name, value in reference.items()}
    start_from(second, read_checkpoint(tmp_path / "a.ckpt"), cfg)
    now = second.model.encoder.state_dict()
    for name, value in reference.items():
        assert torch.equal(value, (now if name.startswith("pyramid.") else before)[name])
