"""Decoder and head trained for a new class on its images alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from protoseg.checkpoint import save_checkpoint
from protoseg.data.class_masks import ClassMasks
from protoseg.teach import add_classes, apply_edit, tune_classes
from protoseg.teach.tuning import distillation
from protoseg.trained import TrainedFile, open_file
from protoseg.types import IGNORE_INDEX, ProtosegError
from tests.teach.conftest import MakeCheckpoint

MODULE = "protoseg.teach.tuning"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", 24), ("LEARNING_RATE", 1e-2), ("WARMUP", 1)):
        monkeypatch.setattr(f"{MODULE}.{name}", value)


@pytest.fixture
def plain(make_checkpoint: MakeCheckpoint) -> TrainedFile:
    return open_file(make_checkpoint())


@pytest.fixture
def green(patches: tuple[Path, Path]) -> ClassMasks:
    return ClassMasks(*patches, ["green"], [(0, 255, 0)], [1])


def found_by(file: TrainedFile, data: ClassMasks) -> float:
    """IoU of the last class of the checkpoint, which is the first one of the data."""
    model, hit, total = file.model(), 0, 0
    for image, label, _ in (data[index] for index in range(len(data))):
        logits = F.interpolate(model(image[None]).logits, scale_factor=model.stride)[0]
        seen, true = (logits.argmax(0) == len(logits) - 1)[label >= 0], (label == 0)[label >= 0]
        hit, total = hit + int((seen & true).sum()), total + int((seen | true).sum())
    return hit / total


def test_the_class_is_found_and_the_rest_is_kept(plain: TrainedFile, green: ClassMasks, tmp_path: Path) -> None:
    tuned, (found,) = tune_classes(plain, green, ["green"])
    assert (found.name, found.network) == ("green", "student")
    save_checkpoint(tuned.content, tmp_path / "tuned.ckpt")
    again = open_file(tmp_path / "tuned.ckpt")
    assert again.label_space.classes == (*plain.label_space.classes, "green")
    assert found_by(again, green) > 0.4  # by its prototypes alone 0.22
    before, after = plain.content["state_dict"], tuned.content["state_dict"]
    same_size = {name for name in before if name in after and before[name].shape == after[name].shape}
    changed = {name for name in same_size if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.decoder.", "model.head.projection.", "model.head.emb")) for name in changed)
    old, new = (state["model.head.memory.prototypes"] for state in (before, after))
    assert not torch.equal(old, new[:-1])
    assert not any("running" in name for name in changed)


def test_the_same_seed_gives_the_same_bits(
    plain: TrainedFile, green: ClassMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.STEPS", 2)
    drawn = torch.get_rng_state()
    one, same = (tune_classes(plain, green, ["green"], 1)[0].content["state_dict"] for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_statistics_are_of_the_weights_before(base: Path, green: ClassMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.STEPS", 1)
    file = open_file(base)
    edit, _ = add_classes(file, green, ["green"])
    taught = TrainedFile(base, apply_edit(file.content, edit))
    green.label_space = type(green.label_space)("more", ("lime", "(other)"), green.label_space.colors)
    tuned, _ = tune_classes(taught, green, ["lime"])
    assert tuned.statistics() is None
    assert tuned.model().discriminant is None
    assert tuned.label_space.classes[-2:] == ("green", "lime")


def test_the_loss_is_cross_entropy_to_the_class_and_to_the_old_answer(
    plain: TrainedFile, green: ClassMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.STEPS", 1)
    tuned, _ = tune_classes(plain, green, ["green"])
    model, old = tuned.model(), plain.model()
    image, label = green[0].image[None], green[0].label[None]
    found = distillation(model, old, [0], image, label)
    now, before = model(image).logits[0], old(image).logits[0]
    losses = []
    for row in range(now.shape[1]):
        for column in range(now.shape[2]):
            of = int(label[0, row * model.stride + model.stride // 2, column * model.stride + model.stride // 2])
            said = now[:, row, column].log_softmax(0)
            if of == 0:
                losses.append(-said[-1])
            elif of != IGNORE_INDEX:
                losses.append(-(before[:, row, column].softmax(0) * said[:-1]).sum())
    assert 0 < len(losses) < now[0].numel()
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_what_cannot_be_tuned_is_refused(
    plain: TrainedFile, green: ClassMasks, make_checkpoint: MakeCheckpoint
) -> None:
    softmax = open_file(make_checkpoint("head=parametric", "loss=parametric", name="softmax"))
    with pytest.raises(ProtosegError, match="expected a checkpoint whose classes are prototypes"):
        tune_classes(softmax, green, ["green"])
    with pytest.raises(ProtosegError, match="blue"):
        tune_classes(plain, green, ["blue"])
    green.id_table[:] = 1
    with pytest.raises(ProtosegError, match="expected pixels of it in the masks"):
        tune_classes(plain, green, ["green"])
