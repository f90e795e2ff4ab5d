"""Encoders learned without labels (DINO, EVA-02, SigLIP 2, AM-RADIO): timm's numbers at any size, patches alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from protoseg.checkpoint import read_checkpoint
from protoseg.models.encoders import IMAGENET_MEAN, TimmEncoder
from protoseg.run.train import run_training
from protoseg.types import ProtosegError

HALF = (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073)
FAMILIES = [
    ("vit_small_patch14_dinov2", 1, IMAGENET_MEAN),
    ("vit_small_patch14_reg4_dinov2", 5, IMAGENET_MEAN),
    ("vit_tiny_patch16_dinov3_qkvb", 5, IMAGENET_MEAN),
    ("eva02_tiny_patch14_224", 1, CLIP),
    ("vit_base_patch16_siglip_gap_512.v2_webli", 0, HALF),
    ("vit_base_patch16_radio_v3", 8, CLIP),
]


@pytest.mark.parametrize(("name", "prefix", "mean"), FAMILIES, ids=[case[0] for case in FAMILIES])
def test_the_map_is_timms_tokens_without_class_and_registers(name: str, prefix: int, mean: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(name, depth=3, pyramid_channels=4).eval()
    model: Any = encoder.model
    whole: Any = timm.create_model(name, depth=3, dynamic_img_size=True).eval()
    left = whole.load_state_dict(model["model"].state_dict(), strict=False)
    assert left.unexpected_keys == []
    assert all("norm" in key for key in left.missing_keys)  # the one after the last block, random here: ones and zeros
    assert encoder.mean == mean
    assert whole.num_prefix_tokens == prefix
    for height, width in ((64, 96), (96, 160)):
        below, right = (-side % encoder.patch for side in (height, width))
        image = F.pad(torch.randn(2, 3, height, width), (0, right, 0, below))
        with torch.no_grad():
            tokens = whole.forward_features(image)[:, prefix:]
            last = encoder.model(image)[-1]
            (theirs,) = whole.forward_intermediates(image, indices=[2], intermediates_only=True)
        assert last.shape[-2:] == (-(-height // encoder.patch), -(-width // encoder.patch))
        assert torch.equal(last, theirs)
        assert torch.equal(whole.norm(last.flatten(2).transpose(1, 2)), tokens)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_metas_own_file_is_taken(name: str, tmp_path: Path) -> None:
    """Its names: a token for masked patches, registers of another name, and a position of the class token."""
    state = timm.create_model(name, depth=3, num_classes=0).state_dict()
    expected = {key: value.clone() for key, value in state.items() if "norm." not in key or "blocks" in key}
    state["mask_token"] = torch.zeros(1, 384)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        position = torch.randn(1, 1, 384)
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
        expected["cls_token"] = expected["cls_token"] + position
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    encoder = TimmEncoder(name, depth=3, weights=tmp_path / "dinov2_vits14_pretrain.pth")
    got: Any = encoder.model
    got = got["model"].state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_dinov3_convnext_gives_maps_of_its_own() -> None:
    with torch.device("meta"):
        encoder = TimmEncoder("convnext_tiny.dinov3_lvd1689m")
    assert (encoder.channels, encoder.strides) == ([96, 192, 384, 768], [4, 8, 16, 32])


@pytest.mark.slow
def test_vfm_trains_a_step(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    """The recipe with an encoder of a few thousand weights: masked images, no feature distance, rates by blocks."""
    tiny = ("encoder.name=test_vit", "encoder.pretrained=false", "encoder.pyramid_channels=16", "decoder.width=16")
    data = ("data=streets_day_to_dusk", "~pair/hrda", "data.crop_size=[64,64]", "data.num_workers=0", "threads=1")
    data += ("data.rare_classes.min_pixels=100",)
    steps = ("trainer.max_steps=1", "trainer.limit_val_batches=1", "callbacks.dashboard=null", "trainer.precision=32")
    run_training(configure("train", "experiment=gta5_to_cityscapes_vfm", *tiny, *data, *steps))
    checkpoint = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 1
    (groups,) = [state["param_groups"] for state in checkpoint["optimizer_states"]]
    depth = len(timm.create_model("test_vit").blocks)
    rates = {group["name"]: group["initial_lr"] for group in groups}
    assert rates == {
        "decoder": 2.83e-5,
        **{f"encoder_{i}": pytest.approx(3.14e-6 * 0.9 ** (depth + 1 - i)) for i in range(depth + 1)},
    }
    assert not any("feature_distance" in name for name in checkpoint["state_dict"])


def test_weights_of_another_size_or_family_name_the_first_ten_left_over(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_small_patch14_dinov2", depth=3, num_classes=0).state_dict(), tmp_path / "a.pth")
    for name, depth, kinds in (
        ("vit_base_patch14_dinov2", 3, ("of another shape",)),
        ("vit_small_patch14_dinov2", 2 + 2, ("missing",)),
        ("convnext_atto", None, ("missing", "unexpected")),
    ):
        with pytest.raises(ProtosegError, match=r"a\.pth does not fit the encoder\. Keys ") as raised:
            TimmEncoder(name, weights=tmp_path / "a.pth", **({} if depth is None else {"depth": depth}))
        listed = str(raised.value).partition("Keys ")[2].partition(". Use a file")[0].split("; ")
        assert [part.partition(":")[0].partition(" ")[2] for part in listed] == list(kinds)
        for part in listed:
            number, names = int(part.partition(" ")[0]), part.partition(": ")[2]
            assert number > 10
            assert names.count(", ...") == 1
            assert len([key for key in names.split(", ") if "." in key or "_" in key]) >= 10
