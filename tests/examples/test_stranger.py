"""A stranger's network, of torch and in an ONNX file: its own answer, and doubt, teaching and saving around it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

import protoseg
from benchmarks import stranger
from examples.stranger.stranger import IMAGENET, adapted, taught
from protoseg.checkpoint import save_checkpoint
from protoseg.data import CAMVID, Streets
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import mapping_table, relabelled
from protoseg.export.onnx import export_onnx
from protoseg.run.evaluate import run_evaluation
from protoseg.teach import add_classes, apply_edit, merge_classes, refresh_class, remove_classes, with_statistics
from protoseg.teach.tuning import tune_classes
from protoseg.types import ProtosegError

CLASSES: list[str | None] = [None if name == "Sky" else name for name in CAMVID.classes]
PHOTO = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)


class Tiny(nn.Module):
    """Maps of 8 channels at stride 2 and 16 at stride 4, logits at stride 2, as torchvision gives them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Conv2d(8, channels, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        fine = self.stem(image)
        self.deep(fine)
        return {"out": self.classifier(fine)}


def tiny(channels: int = 11) -> Tiny:
    torch.manual_seed(0)
    return Tiny(channels).eval()


def scenes(first: int, last: int, without: str | None = None, split: str = "train") -> SegmentationDataset:
    found = Streets(split=split)
    found.samples = found.samples[first:last]
    if without:
        space, table = relabelled(CAMVID, {without: None})
        found.map_classes(space, mapping_table(CAMVID, space, table))
    return found


def as_onnx(network: Tiny, path: Path, size: tuple[int, int] | None = None) -> Path:
    """The same network, written by hand: an exporter takes seconds."""
    onnx = pytest.importorskip("onnx", reason="pip install 'protoseg[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'protoseg[onnx]'")
    make, of = onnx.helper, onnx.numpy_helper.from_array
    weights, nodes = [], []

    def conv(name: str, layer: nn.Conv2d, source: str) -> str:
        weights.extend(of(p.detach().numpy(), f"{name}.{key}") for key, p in layer.named_parameters())
        settings = {"strides": list(layer.stride), "pads": [*layer.padding] * 2}
        nodes.append(make.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [name], **settings))
        return name

    def stage(name: str, layers: nn.Sequential, source: str) -> str:
        source, norm = conv(f"{name}.conv", layers[0], source), layers[1]
        parts = [of(getattr(norm, key).detach().numpy(), f"{name}.{key}") for key in ("weight", "bias")]
        parts += [of(getattr(norm, key).numpy(), f"{name}.{key}") for key in ("running_mean", "running_var")]
        weights.extend(parts)
        inputs = [source, *(part.name for part in parts)]
        nodes.append(make.make_node("BatchNormalization", inputs, [f"{name}.norm"], epsilon=norm.eps))
        nodes.append(make.make_node("Relu", [f"{name}.norm"], [name]))
        return name

    stage("deep", network.deep, stage("stem", network.stem, "image"))
    nodes[-1].output[0] = "deep"
    conv("logits", network.classifier, "stem")
    sides: Sequence[Any] = size or ("height", "width")
    image = make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, *sides])
    logits = make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
    graph = make.make_graph(nodes, "tiny", [image], [logits], weights)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), path)
    return path


def own_answer(network: nn.Module, photo: np.ndarray) -> np.ndarray:
    image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = network(F.pad((image - mean) / std, (0, -photo.shape[1] % 32, 0, -photo.shape[0] % 32)))["out"]
    rows, columns = photo.shape[0] // 2, photo.shape[1] // 2
    return F.interpolate(logits[..., :rows, :columns], scale_factor=2, mode="bilinear")[0].argmax(0).numpy()


@pytest.fixture(params=["torch", "onnx"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module | Path:
    return tiny() if request.param == "torch" else as_onnx(tiny(), tmp_path / "tiny.onnx")


def test_its_answer_is_its_own(network: nn.Module | Path) -> None:
    model = protoseg.wrap(network, CAMVID.classes, **IMAGENET)
    assert np.array_equal(model.to("cpu").predict(PHOTO).labels, own_answer(tiny(), PHOTO))
    assert model.classes == CAMVID.classes
    encoder = model.network.encoder
    assert (encoder.channels, encoder.strides) == ([8, 16, 11], [2, 4, 2])
    names = encoder.features if isinstance(network, nn.Module) else encoder.network.outputs
    assert [name.split(".")[0] for name in names[:2]] == ["stem", "deep"]
    few = protoseg.wrap(network, CAMVID.classes, features=[names[1]], **IMAGENET)
    assert few.network.encoder.channels == [16, 11]
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        deep = tiny().deep(tiny().stem(few.network.normalize(image)))
        torch.testing.assert_close(few.network(image).features[0], deep, atol=1e-5, rtol=1e-4)


def test_channels_of_one_name_are_one_class() -> None:
    channels = ["road", "car", "road", None]
    model = protoseg.wrap(tiny(4), channels, palette={"car": (0, 0, 142), "road": (128, 64, 128)}).to("cpu")
    assert model.label_space.classes == ("car", "road")
    assert model.label_space.colors == ((0, 0, 142), (128, 64, 128))
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        p = tiny(4)(image)["out"][:, :3].softmax(1)
        want = torch.stack([p[:, 1], p[:, 0] + p[:, 2]], 1)
        torch.testing.assert_close(model.network(image).logits.softmax(1), want)


def test_maps_that_it_gives_itself() -> None:
    class Lists(Tiny):
        def forward(self, image: Tensor) -> list[Tensor]:  # type: ignore[override]
            fine = self.stem(image)
            return [self.deep(fine), self.classifier(fine)]

    model = protoseg.wrap(Lists(2), ["a", "b"])
    assert (model.network.encoder.channels, model.network.encoder.strides) == ([16, 2], [4, 2])


def test_it_is_taught(network: nn.Module | Path, tmp_path: Path) -> None:
    names = [name for name in CAMVID.classes if name != "Sky"]
    model = taught(network, CLASSES, scenes(0, 4, without="Sky"), scenes(4, 8), ["Sky"]).to("cpu")
    assert model.classes == (*names, "Sky")
    image, label, _ = scenes(0, 1, split="val")[0]
    seen, true = model.predict(image), label.numpy() == CAMVID.classes.index("Sky")
    assert (seen.mask("Sky") & true).sum() / (seen.mask("Sky") | true).sum() > 0.45
    before = protoseg.wrap(network, CLASSES, **IMAGENET).to("cpu").predict(image)
    same = ~seen.mask("Sky")
    assert np.array_equal(seen.labels[same], before.labels[same])
    file = model.file
    less = replace(file, content=apply_edit(file.content, remove_classes(file, ["Sky"])))
    assert np.array_equal(protoseg.Model.of_file(less, "cpu").predict(image).labels, before.labels)
    both = apply_edit(file.content, merge_classes(file, ["Road", "Tree"], "Road"))
    assert both["protoseg"]["config"]["head"]["channel_class"].count(names.index("Road")) == 2
    with pytest.raises(ProtosegError, match="expected a taught one, got channels"):
        refresh_class(file, scenes(4, 6), "Road")
    with pytest.raises(ProtosegError, match="tune: expected prototypes"):
        tune_classes(file, scenes(4, 6), ["Sky"])
    with pytest.raises(ProtosegError, match="expected one with statistics of its training images"):
        add_classes(protoseg.wrap(network, CLASSES).file, scenes(4, 6), ["Sky"])
    edit, _ = refresh_class(file, scenes(6, 8), "Sky", keep=0.0)
    assert not apply_edit(file.content, edit)["protoseg"]["statistics"]["student"]["means"].equal(
        file.statistics().means
    )


def test_it_is_saved_and_opened_by_commands(tmp_path: Path, configure: Callable[..., DictConfig]) -> None:
    path = as_onnx(tiny(), tmp_path / "tiny.onnx")
    model = protoseg.wrap(path, CLASSES, **IMAGENET).to("cpu")
    file = with_statistics(model.file, scenes(0, 4, without="Sky"))
    edit, (found,) = add_classes(file, scenes(4, 8), ["Sky"])
    assert found.distinct == 0
    model = protoseg.Model.of_file(replace(file, content=apply_edit(file.content, edit)), "cpu")
    want, checkpoint = model.predict(PHOTO), model.save_pretrained(tmp_path / "saved")
    path.unlink()
    again = protoseg.load(checkpoint, "cpu")
    assert repr(again).startswith("Model: OnnxNetwork + LogitsHead")
    assert np.array_equal(again.predict(PHOTO).labels, want.labels)
    assert np.array_equal(again.predict(PHOTO).confidence, want.confidence)
    for scene in map(Path, Streets(split="val").samples[0]):
        place = tmp_path / "streets" / scene.relative_to(scene.parents[3])
        place.parent.mkdir(parents=True)
        shutil.copy(scene, place)
    data = ["data=streets", f"data.root={tmp_path / 'streets'}"]
    overrides = [f"ckpt_path={checkpoint}", *data, "device=cpu", "save=[]", "num_workers=0", "report=true"]
    run_evaluation(configure("evaluate", *overrides, output=tmp_path / "out"))
    assert 'id="doubt"' in (tmp_path / "out" / "report.html").read_text()  # it has statistics


def test_torch_is_saved_where_it_can_be_made_again(tmp_path: Path) -> None:
    model = taught(tiny(), CLASSES, scenes(0, 3, without="Sky"), scenes(4, 6), ["Sky"])
    with pytest.raises(ProtosegError, match="save_pretrained: expected a network made with"):
        model.save_pretrained(tmp_path)
    named = protoseg.wrap(tiny(), CAMVID.classes, arguments={"channels": 11}).to("cpu")
    file = with_statistics(named.file, scenes(0, 3))
    known, plain = protoseg.Model.of_file(file, "cpu"), named.predict(PHOTO)
    slope, bias = file.statistics()[6:8]
    said = torch.from_numpy(plain.confidence).logit()
    odds = said * slope[0] + said.mean() * slope[1] + bias[plain.labels.astype(int)]
    np.testing.assert_allclose(known.predict(PHOTO).confidence, odds.sigmoid().numpy(), atol=1e-4)
    with pytest.raises(ProtosegError, match=r"say trust="):
        protoseg.load(known.save_pretrained(tmp_path / "saved"))
    again = protoseg.load(tmp_path / "saved", "cpu", trust=[Tiny.__module__])
    assert np.array_equal(again.predict(PHOTO).confidence, known.predict(PHOTO).confidence)
    assert again.file.model().discriminant is not None


def test_another_light(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        Image.fromarray(PHOTO // (2 + index)).save(photos / f"{index}.png")
    network = tiny()
    model = adapted(network, CAMVID.classes, photos)
    own = model.network.encoder.network.stem[1]
    assert not torch.equal(own.running_mean.cpu(), network.stem[1].running_mean)
    assert torch.equal(tiny().stem[1].running_mean, network.stem[1].running_mean)
    with pytest.raises(ProtosegError, match=r"expected BatchNorm layers of torch, got none \(as in an ONNX file\)"):
        adapted(as_onnx(tiny(), tmp_path / "tiny.onnx"), CAMVID.classes, photos)


def test_a_file_of_one_size(tmp_path: Path) -> None:
    free, fixed = (as_onnx(tiny(), tmp_path / f"{size}.onnx", size) for size in (None, (64, 96)))
    one, other = (protoseg.wrap(path, CAMVID.classes, **IMAGENET).to("cpu").network for path in (free, fixed))
    same, larger = torch.rand(1, 3, 64, 96), torch.rand(1, 3, 128, 192)
    assert torch.equal(one(same).logits, other(same).logits)
    small = F.interpolate(larger, (64, 96), mode="bilinear", antialias=True)
    want = F.interpolate(one(small).logits, (64, 96), mode="bilinear")
    torch.testing.assert_close(other(larger).logits, want, atol=1e-5, rtol=1e-4)
    assert [x.shape[2:] for x in other(torch.rand(1, 3, 70, 50)).features] == [(35, 25), (18, 13), (35, 25)]


def test_the_file_is_data(tmp_path: Path) -> None:
    path = as_onnx(tiny(), tmp_path / "tiny.onnx")
    file = protoseg.wrap(path, CAMVID.classes).file
    kept = file.content["state_dict"]["model.encoder.network.file"]
    assert kept.numpy().tobytes() == path.read_bytes()
    save_checkpoint(file.content, tmp_path / "whole.ckpt")
    kept.zero_()
    save_checkpoint(file.content, tmp_path / "empty.ckpt")
    assert protoseg.load(tmp_path / "whole.ckpt", "cpu").predict(PHOTO).labels.shape == (50, 70)
    with pytest.raises(ProtosegError, match="an ONNX file that holds its weights, one float32"):
        protoseg.load(tmp_path / "empty.ckpt", "cpu").predict(PHOTO)
    onnx = pytest.importorskip("onnx", reason="pip install 'protoseg[onnx]'")
    onnx.save(onnx.load(path), tmp_path / "two.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ProtosegError, match="an ONNX file that holds its weights, one float32"):
        protoseg.wrap(tmp_path / "two.onnx", CAMVID.classes)
    with pytest.raises(ProtosegError, match="expected a network of torch, got an ONNX file"):
        export_onnx(protoseg.wrap(path, CAMVID.classes).network, CAMVID, tmp_path / "again.onnx")


@pytest.mark.slow
def test_the_benchmark_says_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stranger, "CamVid", lambda root, split: scenes(0, 4 if split == "train" else 1, split=split))
    monkeypatch.setattr(stranger, "SHOTS", (1,))
    monkeypatch.setattr(stranger, "DRAWS", 2)
    stranger.main([str(as_onnx(tiny(20), tmp_path / "tiny.onnx")), "CAMVID", "Sky", "--images", "3"])
    out = capsys.readouterr().out
    for line in ("as it is: ", "by a discriminant", "class-aware: AUROC", "Sky left out: the others", "Sky from 1: "):
        assert line in out


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: protoseg.wrap("none.onnx", ["a"]), "got none.onnx: there is no such file"),
        (lambda: protoseg.wrap(__file__, ["a"]), "an ONNX file that holds its weights, one float32"),
        (lambda: protoseg.wrap(tiny(3), ["a", "b"]), "expected 3 names or None, .* got 2"),
        (lambda: protoseg.wrap(tiny(2), ["a", "b"], features=["stern"]), "expected maps out of stem.0, .* got stern"),
        (lambda: protoseg.wrap(tiny(2), ["a", "b"], palette={"a": (0, 0, 0)}), "got b"),
        (lambda: protoseg.wrap(nn.Flatten(), ["a"]), "expected no names"),
    ],
)
def test_what_does_not_fit_is_told(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ProtosegError, match=match):
        make()
