"""Classes taught by statistics of the frozen maps: found, kept through every change, and never used wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import protoseg
from protoseg.checkpoint import read_checkpoint, save_checkpoint
from protoseg.data import CAMVID, Streets
from protoseg.data.dataset import SegmentationDataset
from protoseg.data.label_spaces import mapping_table, relabelled
from protoseg.export.onnx import _Network, compare_onnx, export_onnx
from protoseg.functional.discriminant import Statistics
from protoseg.teach import add_classes, apply_edit, merge_classes, read_edit, refresh_class, remove_classes, write_edit
from protoseg.teach.statistics import in_bad_light, with_statistics
from protoseg.trained import TrainedFile, open_file
from protoseg.types import ProtosegError
from tests.teach.conftest import MakeCheckpoint


def scenes(split: str, first: int, last: int) -> SegmentationDataset:
    found = Streets(split=split)
    found.samples = found.samples[first:last]
    return found


def file_of(path: Path, content: dict[str, Any]) -> TrainedFile:
    save_checkpoint(content, path)
    return open_file(path)


def ready_content(make_checkpoint: MakeCheckpoint) -> dict[str, Any]:
    path = make_checkpoint()
    without = apply_edit(read_checkpoint(path), remove_classes(open_file(path), ["Sky"]))
    data, held_out = scenes("train", 0, 4), scenes("val", 0, 2)
    space, table = relabelled(CAMVID, {"Sky": None})
    for each in (data, held_out):
        each.map_classes(space, mapping_table(CAMVID, space, table))
    return with_statistics(TrainedFile(path, without), data, held_out=held_out).content


KEPT: list[dict[str, Any]] = []  # made once: half of the time of these tests


@pytest.fixture
def ready(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> TrainedFile:
    """An untrained network that does not know Sky, with statistics of four of the built-in scenes and label sets."""
    if not KEPT:
        KEPT.append(ready_content(make_checkpoint))
    return file_of(tmp_path / "ready.ckpt", KEPT[0])


@pytest.fixture
def taught(ready: TrainedFile) -> TrainedFile:
    edit, _ = add_classes(ready, scenes("train", 4, 8), ["Sky"])
    return file_of(ready.path.with_name("taught.ckpt"), apply_edit(ready.content, edit))


def iou(file: TrainedFile, name: str, data: SegmentationDataset) -> float:
    model = protoseg.load(file.path, "cpu")
    hit = total = 0
    for index in range(len(data)):
        image, label, _ = data[index]
        seen, true = model.predict(image).mask(name), label.numpy() == CAMVID.classes.index(name)
        hit, total = hit + (seen & true).sum(), total + (seen | true).sum()
    return float(hit / total)


def test_a_taught_class_is_found_and_other_pixels_keep_their_answer(ready: TrainedFile, taught: TrainedFile) -> None:
    val = scenes("val", 0, 3)
    assert iou(taught, "Sky", val) > 0.45
    before, after = (protoseg.load(file.path, "cpu").network for file in (ready, taught))
    image = val[0][0][None]
    old, new = before(image).logits, after(image).logits
    sky = new.argmax(1) == 10
    assert 0.05 < sky.float().mean() < 0.9
    assert torch.equal(old, new[:, :10])
    of_sky = torch.from_numpy(protoseg.load(taught.path, "cpu").predict(image[0]).labels) == 10
    strange = [protoseg.load(file.path, "cpu").predict(image[0]).unknown[of_sky].mean() for file in (ready, taught)]
    assert strange[1] < 0.5 * strange[0]
    assert not after.state_dict().keys() ^ before.state_dict().keys()


def test_confidence_is_by_class(ready: TrainedFile, taught: TrainedFile, tmp_path: Path) -> None:
    known, plain = ready.statistics(), dict(ready.content["protoseg"])
    assert known is not None
    assert len(set(known.bias.tolist())) > 1
    del plain["statistics"]
    raw = protoseg.load(file_of(tmp_path / "p.ckpt", ready.content | {"protoseg": plain}).path, "cpu")
    image = scenes("val", 0, 1)[0][0]
    one, other = raw.predict(image), protoseg.load(ready.path, "cpu").predict(image)
    assert np.array_equal(one.labels, other.labels)
    said = torch.from_numpy(one.confidence).logit()
    odds = said * known.slope[0] + said.mean() * known.slope[1] + known.bias[one.labels.astype(int)]
    np.testing.assert_allclose(other.confidence, odds.sigmoid().numpy(), atol=1e-4)
    after = taught.statistics()
    assert after is not None
    assert torch.equal(after.bias[:-1], known.bias)
    assert after.bias[-1] == known.bias.mean()
    with_all = protoseg.load(ready.path, "cpu").predict(image, probabilities=True)
    np.testing.assert_allclose(with_all.confidence, other.confidence, atol=1e-6)
    assert np.array_equal(with_all.probabilities.argmax(0), other.labels)
    assert np.array_equal(with_all.unknown, one.unknown)


def test_label_sets_are_made_of_every_second_held_out_image(ready: TrainedFile, taught: TrainedFile) -> None:
    known, after = ready.statistics(), taught.statistics()
    assert known is not None
    assert after is not None
    assert known.sets is not None
    assert after.sets is not None
    assert torch.equal(after.sets, torch.cat([known.sets, torch.zeros(1)]))  # nothing is known of a new class
    image, label, _ = scenes("val", 0, 1)[0]
    chance = torch.from_numpy(protoseg.load(ready.path, "cpu").predict(image, probabilities=True).probabilities)
    ids = torch.tensor([ready.label_space.classes.index(name) if name != "Sky" else -1 for name in CAMVID.classes])
    truth = ids[label].where(label >= 0, -1)
    seen = [c for c in range(10) if (truth == c).sum() > 5000]
    assert len(seen) > 1
    for c in seen:  # of a part of the pixels of this image, the first of two
        assert (chance[c][truth == c] >= known.sets[c]).float().mean().item() == pytest.approx(0.9, abs=0.05)


def test_its_place_goes_through_every_change(taught: TrainedFile, tmp_path: Path) -> None:
    names = [name for name in CAMVID.classes if name != "Sky"]
    known = taught.statistics()
    assert known is not None
    assert known.taught.tolist() == [*[False] * (len(known.classes) - 1), True]
    merged = file_of(tmp_path / "m.ckpt", apply_edit(taught.content, merge_classes(taught, ["Road", "Tree"], "Road")))
    rivals = merged.statistics()
    assert rivals is not None
    assert torch.equal(rivals.means, known.means)
    both = [rivals.classes[known.classes == names.index(name)].item() for name in ("Road", "Tree")]
    assert both == [merged.label_space.classes.index("Road")] * 2
    less = file_of(tmp_path / "l.ckpt", apply_edit(merged.content, remove_classes(merged, ["Sky"])))
    assert not less.statistics().taught.any()  # type: ignore[union-attr]
    night = scenes("train", 8, 9)
    edit, _ = refresh_class(taught, night, "Sky", keep=0.0)
    moved = file_of(tmp_path / "r.ckpt", apply_edit(taught.content, edit)).statistics()
    assert moved is not None
    assert torch.equal(moved.means[:-1], known.means[:-1])
    assert not torch.equal(moved.means[-1], known.means[-1])
    edit, _ = refresh_class(taught, night, "Building")
    kept = file_of(tmp_path / "b.ckpt", apply_edit(taught.content, edit)).statistics()
    assert kept is not None
    assert torch.equal(kept.means, known.means)
    mixed = file_of(
        tmp_path / "x.ckpt", apply_edit(taught.content, merge_classes(taught, ["Building", "Sky"], "Building"))
    )
    edit, _ = refresh_class(mixed, night, "Building", keep=0.5)  # what was taught of it, the network's own answer stays
    both = file_of(tmp_path / "y.ckpt", apply_edit(mixed.content, edit)).statistics()
    assert both is not None
    assert both.taught.tolist() == known.taught.tolist()
    assert torch.equal(both.means[:-1], known.means[:-1])
    assert not torch.equal(both.means[-1], known.means[-1])
    with pytest.raises(ProtosegError, match="expected one that the network was trained for to be left"):
        apply_edit(taught.content, remove_classes(taught, names))


def test_saved_models_and_changes_carry_it(ready: TrainedFile, taught: TrainedFile, tmp_path: Path) -> None:
    model, image = protoseg.load(taught.path, "cpu"), scenes("val", 0, 1)[0][0]
    again = protoseg.load(model.save_pretrained(tmp_path / "saved").parent, "cpu")
    assert np.array_equal(again.predict(image).labels, model.predict(image).labels)
    edit, _ = add_classes(ready, scenes("train", 4, 8), ["Sky"])
    write_edit(edit, tmp_path / "sky.delta")
    applied = file_of(tmp_path / "a.ckpt", apply_edit(ready.content, read_edit(tmp_path / "sky.delta")))
    assert all(map(torch.equal, applied.statistics(), taught.statistics()))  # type: ignore[arg-type]
    plain = ready.content | {"protoseg": {k: v for k, v in ready.content["protoseg"].items() if k != "statistics"}}
    with pytest.raises(ProtosegError, match="got another"):  # its place means nothing without the statistics
        apply_edit(plain, edit)


@pytest.mark.slow
def test_a_taught_class_goes_into_the_onnx_file(taught: TrainedFile, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'protoseg[onnx]'")
    export_onnx(taught.model(), taught.label_space, tmp_path / "x.onnx", size=(120, 152))
    found = compare_onnx(taught.model(), tmp_path / "x.onnx", [(120, 152)])
    assert found.labels < 1e-4
    assert found.logits < 1e-3


@pytest.mark.slow
def test_doubt_goes_into_the_onnx_file_of_any_size(ready: TrainedFile, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'protoseg[onnx]'")
    export_onnx(ready.model(), ready.label_space, tmp_path / "x.onnx")
    assert compare_onnx(ready.model(), tmp_path / "x.onnx", [(120, 152), (97, 130)]).logits < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    assert [output.name for output in session.get_outputs()] == ["labels", "logits", "confidence", "unknown"]
    image = scenes("val", 0, 1)[0][0]
    _, _, confidence, unknown = session.run(None, {"image": image[None].numpy()})
    want = protoseg.load(ready.path, "cpu").predict(image)
    np.testing.assert_allclose(confidence[0], want.confidence, atol=1e-3)
    np.testing.assert_allclose(unknown[0], want.unknown, atol=1e-3)


def test_what_is_exported_says_what_a_prediction_says(ready: TrainedFile) -> None:
    model, image = ready.model(), scenes("val", 0, 1)[0][0]
    with torch.no_grad():
        labels, logits, confidence, unknown = _Network(model, (image.shape[1], image.shape[2]))(image[None])
    want = protoseg.load(ready.path, "cpu").predict(image)
    assert np.array_equal(labels[0].numpy(), want.labels)
    assert logits.shape[1] == 10
    np.testing.assert_allclose(confidence[0].numpy(), want.confidence, atol=1e-4)
    np.testing.assert_allclose(unknown[0].numpy(), want.unknown, atol=1e-5)


def test_what_does_not_fit_is_refused(
    taught: TrainedFile, ready: TrainedFile, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(ProtosegError, match=r"expected a fixed size for HRDA, .* and taught classes"):
        export_onnx(taught.model(), taught.label_space, tmp_path / "x.onnx")
    with pytest.raises(ProtosegError, match="expected one without taught classes"):
        with_statistics(taught, Streets(split="train"))
    with pytest.raises(ProtosegError, match="was trained on"):
        with_statistics(ready, Streets(split="train"))
    own = taught.content["protoseg"]
    whole, damaged = own["statistics"]["student"], {"scale": torch.ones(3), "classes": [1], "means": "x", "more": 1}
    damaged |= {"sets": torch.ones(3), "bias": None}
    for name, value in (damaged | {"factor": torch.full_like(whole["factor"], torch.nan)}).items():
        content = taught.content | {"protoseg": own | {"statistics": {"student": whole | {name: value}}}}
        with pytest.raises(ProtosegError, match="its statistics cannot be built"):
            TrainedFile(taught.path, content).model()
        with pytest.raises(ProtosegError, match="its statistics cannot be built"):
            remove_classes(TrainedFile(taught.path, content), ["Road"])
    other = read_checkpoint(make_checkpoint("head.embedding_dim=8", name="other"))
    other["protoseg"]["statistics"] = taught.content["protoseg"]["statistics"]
    with pytest.raises(ProtosegError, match=r"expected those of the .* channels of this network"):
        TrainedFile(Path("other.ckpt"), other).model()


def test_bad_light_is_darker_and_noisy_and_of_any_kind() -> None:
    image, draw = scenes("val", 0, 1)[0][0], torch.Generator().manual_seed(0)
    seen = [in_bad_light(image, draw) for _ in range(4)]
    assert all(each.dtype == torch.uint8 and each.float().mean() < image.float().mean() for each in seen)
    assert len({float(each.float().mean()) for each in seen}) == 4
    floats = in_bad_light(torch.rand(5, 8, 9), draw)
    assert (floats.shape, floats.dtype) == ((5, 8, 9), torch.float32)
    assert ((floats >= 0) & (floats <= 1)).all()


def test_statistics_of_before_are_still_read(ready: TrainedFile, tmp_path: Path) -> None:
    own = ready.content["protoseg"]
    known = own["statistics"]["student"]
    before = {name: value for name, value in known.items() if name != "sets"} | {"slope": known["slope"][0].clone()}
    old = file_of(tmp_path / "old.ckpt", ready.content | {"protoseg": own | {"statistics": {"student": before}}})
    prediction = protoseg.load(old.path, "cpu").predict(scenes("val", 0, 1)[0][0])
    assert ((prediction.confidence > 0) & (prediction.confidence < 1)).all()
    less = apply_edit(old.content, remove_classes(old, ["Road"]))["protoseg"]["statistics"]["student"]
    assert Statistics(**less).checked(9).sets is None
