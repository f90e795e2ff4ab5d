"""Adding, refreshing, removing and merging classes: what comes out, what stays, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import protoseg
from protoseg.checkpoint import checkpoint_label_space, read_checkpoint, save_checkpoint
from protoseg.data import CAMVID
from protoseg.data.class_masks import ClassMasks
from protoseg.run.evaluate import image_loader, open_checkpoint
from protoseg.teach import add_classes, apply_edit, merge_classes, read_edit, refresh_class, remove_classes, write_edit
from protoseg.teach.edit import reading_again
from protoseg.trained import TrainedFile
from protoseg.types import ProtosegError
from tests.teach.conftest import MakeCheckpoint, with_scenes

PROTOTYPES = "model.head.memory.prototypes"
GREEN = (0, 255, 0)


def green(patches: tuple[Path, Path], *names: str, ids: tuple[int, ...] = (1,)) -> ClassMasks:
    return ClassMasks(*patches, names, [GREEN] * len(names), ids)


@pytest.mark.parametrize("together", [True, False])
def test_an_added_class_is_found_in_an_image_that_was_not_given(
    together: bool, base: Path, patches: tuple[Path, Path]
) -> None:
    few = green(patches, "patch", "rest", ids=(1, 0))
    few.samples = few.samples[:3]
    new = read_checkpoint(base)
    for names in [["patch", "rest"]] if together else [["rest"], ["patch"]]:
        edit, found = add_classes(TrainedFile(base, new), few, names)
        new = apply_edit(new, edit)
    assert [(one.network, one.distinct) for one in found] == [("student", 2)] * len(names)
    save_checkpoint(new, base)
    image, label, _ = green(patches, "patch")[3]
    prediction, truth = protoseg.load(base, "cpu").predict(image), (label == 0).numpy()[:60]  # below is void
    hit = prediction.mask("patch")[:60]
    assert (hit & truth).sum() / (hit | truth).sum() > 0.6


def test_the_new_checkpoint_knows_the_class(base: Path, patches: tuple[Path, Path]) -> None:
    old = read_checkpoint(base)
    path = base.with_name("new.ckpt")
    save_checkpoint(apply_edit(old, add_classes(TrainedFile(base, old), green(patches, "a"), ["a"])[0]), path)
    before, after = protoseg.load(base, "cpu"), protoseg.load(path, "cpu")
    assert after.classes == (*CAMVID.classes, "a")
    assert after.label_space.colors[-1] == GREEN
    assert after.predict(patches[0] / "3.png").mask("a").any()
    counts = [sum(p.numel() for p in model.network.parameters()) for model in (before, after)]
    assert counts[0] == counts[1]


def changed(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    assert old.keys() == new.keys()
    return {
        name: new[name] for name in new if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])
    }


def test_only_the_prototypes_change_and_less_than_a_megabyte(base: Path, patches: tuple[Path, Path]) -> None:
    old = read_checkpoint(base)
    before = {name: tensor.clone() for name, tensor in old["state_dict"].items()}
    edit, _ = add_classes(TrainedFile(base, old), green(patches, "patch"), ["patch"])
    new = apply_edit(old, edit)
    differing = changed(old["state_dict"], new["state_dict"])
    assert set(differing) == {f"model.head.memory.{name}" for name in ("prototypes", "updates", "occupancy")}
    assert sum(tensor.numel() * tensor.element_size() for tensor in differing.values()) < 1e6
    assert torch.equal(new["state_dict"][PROTOTYPES][:11], before[PROTOTYPES])
    torch.testing.assert_close(new["state_dict"][PROTOTYPES].norm(dim=2), torch.ones(12, 2))
    assert not changed(before, old["state_dict"])
    assert checkpoint_label_space(old).classes == CAMVID.classes


def test_the_change_alone_fits_its_own_network_only(
    base: Path, make_checkpoint: MakeCheckpoint, patches: tuple[Path, Path]
) -> None:
    old = read_checkpoint(base)
    edit, _ = add_classes(TrainedFile(base, old), green(patches, "patch"), ["patch"])
    path = base.with_suffix(".delta")
    write_edit(edit, path)
    assert path.stat().st_size < 20_000
    whole, again = apply_edit(old, edit), apply_edit(old, read_edit(path))
    assert not changed(whole["state_dict"], again["state_dict"])
    assert without_statistics(whole)["protoseg"] == without_statistics(again)["protoseg"]
    other = read_checkpoint(make_checkpoint("seed=1", name="other"))
    with pytest.raises(ProtosegError, match="prototypes of one network mean nothing to another"):
        apply_edit(other, edit)
    with pytest.raises(ProtosegError, match="expected a change of classes"):
        read_edit(base)
    edit.new["student"] = edit.new["student"]._replace(updates=torch.tensor(1))
    write_edit(edit, path)
    with pytest.raises(ProtosegError, match="got a damaged one"):
        read_edit(path)


def test_two_classes_at_once_and_same_seed_same_bits(base: Path, patches: tuple[Path, Path]) -> None:
    old = read_checkpoint(base)
    data = green(patches, "patch", "rest", ids=(1, 0))
    one, two = (
        apply_edit(old, add_classes(TrainedFile(base, old), data, ["patch", "rest"], seed=2)[0]) for _ in range(2)
    )
    assert checkpoint_label_space(one).classes == (*CAMVID.classes, "patch", "rest")
    assert not changed(one["state_dict"], two["state_dict"])
    assert one["state_dict"][PROTOTYPES].shape[:2] == (13, 2)


def test_a_class_of_one_cell_gets_copies(base: Path, patches: tuple[Path, Path]) -> None:
    for index in range(4):
        mask = np.zeros((64, 96), np.uint8)
        mask[:4, :4] = index == 0
        Image.fromarray(mask).save(patches[1] / f"{index}.png")
    edit, (found,) = add_classes(TrainedFile(base, read_checkpoint(base)), green(patches, "patch"), ["patch"])
    assert (found.pixels, found.distinct, found.share) == (1, 1, 1.0)
    image = protoseg.load(base, "cpu").network(green(patches, "patch")[0][0][None])
    assert found.called == CAMVID.classes[int(image.logits[0, :, 0, 0].argmax())]
    first, second = edit.new["student"].prototypes[0]
    assert torch.equal(first, second)


def test_the_teacher_gets_the_class_too(make_checkpoint: MakeCheckpoint, patches: tuple[Path, Path]) -> None:
    path = make_checkpoint("data=streets_day_to_dusk", "method=dacs")
    changed = read_checkpoint(path)
    changed["state_dict"]["teacher.module.head.projection.0.weight"] += 0.1
    save_checkpoint(changed, path)
    old = with_scenes(path).content
    new = apply_edit(old, add_classes(TrainedFile(path, old), green(patches, "patch"), ["patch"])[0])["state_dict"]
    student, teacher = new[PROTOTYPES], new["teacher.module.head.memory.prototypes"]
    assert len(student) == len(teacher) == 12
    assert not torch.equal(student[-1], teacher[-1])


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_refresh_moves_one_class_as_far_as_asked(keep: float, base: Path, patches: tuple[Path, Path]) -> None:
    old = read_checkpoint(base)
    edit, _ = refresh_class(TrainedFile(base, old), green(patches, "Car"), "Car", keep)
    new = apply_edit(old, edit)
    row = CAMVID.classes.index("Car")
    before, after = old["state_dict"][PROTOTYPES], new["state_dict"][PROTOTYPES]
    others = [i for i in range(11) if i != row]
    assert torch.equal(before[others], after[others])
    assert checkpoint_label_space(new) == checkpoint_label_space(old)
    nearest = (before[row] @ after[row].T).amax(1).max()  # the old prototypes are random, far from the pixels
    assert nearest > 0.9 if keep == 0.9 else nearest < 0.9 if keep == 0 else True


def test_remove_and_merge(base: Path) -> None:
    old = read_checkpoint(base)
    less = apply_edit(old, remove_classes(TrainedFile(base, old), ["Car", "Sky"]))
    kept = [i for i, name in enumerate(CAMVID.classes) if name not in ("Car", "Sky")]
    assert torch.equal(less["state_dict"][PROTOTYPES], old["state_dict"][PROTOTYPES][kept])
    assert less["protoseg"]["relabel"] == {"Car": None, "Sky": None}

    edit = merge_classes(TrainedFile(base, less), ["Bicyclist", "Pedestrian"], "Person")
    merged = apply_edit(less, edit)
    space = checkpoint_label_space(merged)
    assert space.classes == (*[CAMVID.classes[i] for i in kept[:-2]], "Person")
    assert space.colors[-1] == CAMVID.colors[CAMVID.classes.index("Pedestrian")]
    assert merged["protoseg"]["relabel"] == {"Car": None, "Sky": None, "Bicyclist": "Person", "Pedestrian": "Person"}
    parts = less["state_dict"][PROTOTYPES][-2:].flatten(0, 1)
    whole = merged["state_dict"][PROTOTYPES][-1]
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(2))
    nearest = (parts @ whole.T).argmax(1)  # each of the two is the mean direction of the ones nearest to it
    for k, prototype in enumerate(whole):
        torch.testing.assert_close(prototype, F.normalize(parts[nearest == k].sum(0), dim=0))

    gone = apply_edit(merged, remove_classes(TrainedFile(base, merged), ["Person"]))
    assert gone["protoseg"]["relabel"] == dict.fromkeys(["Car", "Sky", "Bicyclist", "Pedestrian", "Person"])


def test_an_added_class_is_read_again_from_the_data(
    make_checkpoint: MakeCheckpoint, patches: tuple[Path, Path]
) -> None:
    path = make_checkpoint()
    old = with_scenes(path).content
    without = apply_edit(old, remove_classes(TrainedFile(path, old), ["Car", "Sky"]))
    without["protoseg"]["config"]["data"]["relabel"] = {"Car": None, "Sky": None}
    back = apply_edit(without, add_classes(TrainedFile(path, without), green(patches, "Car"), ["Car"])[0])
    assert back["protoseg"]["relabel"] == {"Sky": None}
    assert back["protoseg"]["config"]["data"]["relabel"] == {"Sky": None}
    assert without["protoseg"]["config"]["data"]["relabel"] == {"Car": None, "Sky": None}
    parts = {"parts": {"one": {"relabel": {"Car": None, "Sky": None}}, "two": {}}}
    assert reading_again({"parts": "x", "relabel": "y"}, ["Car"]) == {"parts": "x", "relabel": "y"}  # a stranger's
    assert reading_again(parts, ["Car"]) == {"parts": {"one": {"relabel": {"Sky": None}}, "two": {}}}


def test_a_class_that_was_merged_away_and_is_taught_again_is_read_as_itself(
    base: Path, patches: tuple[Path, Path]
) -> None:
    old = read_checkpoint(base)
    merged = apply_edit(old, merge_classes(TrainedFile(base, old), ["Road", "Car"], "Road"))
    assert merged["protoseg"]["relabel"] == {"Car": "Road"}
    back = apply_edit(merged, add_classes(TrainedFile(base, merged), green(patches, "Car"), ["Car"])[0])
    assert back["protoseg"]["relabel"] == {}
    assert back["protoseg"]["label_space"]["classes"][-1] == "Car"


def test_both_sides_of_an_adaptation_are_read_as_the_classes_now(
    make_checkpoint: MakeCheckpoint, configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    path = make_checkpoint("data=streets_day_to_dusk", "method=dacs")
    old = read_checkpoint(path)
    save_checkpoint(apply_edit(old, remove_classes(TrainedFile(path, old), ["Sky"])), tmp_path / "less.ckpt")
    cfg = configure("evaluate", f"ckpt_path={tmp_path / 'less.ckpt'}", "num_workers=0", "device=cpu")
    trained = open_checkpoint(cfg)
    assert "Sky" not in trained.label_space.classes
    for training in (False, True):
        with image_loader(cfg, trained, 2, training) as loader:
            dataset: Any = loader.dataset
            assert dataset.dataset.label_space.classes == trained.label_space.classes
            assert all(batch.label.max() < 10 for batch in loader)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head=parametric"], "got protoseg.nn.ParametricHead, whose classes are learned weights"),
        (["head=linear"], "got protoseg.nn.LinearHead"),
        (["head.logits=layernorm"], "got head.logit_norm.bias, head.logit_norm.weight: train with head.logits=temp"),
    ],
)
def test_heads_that_only_training_can_change(
    overrides: list[str], message: str, make_checkpoint: MakeCheckpoint, patches: tuple[Path, Path]
) -> None:
    path = make_checkpoint(*overrides)
    with pytest.raises(ProtosegError, match=message):
        add_classes(TrainedFile(path, read_checkpoint(path)), green(patches, "patch"), ["patch"])


def without_statistics(checkpoint: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in checkpoint["protoseg"].items() if key != "statistics"}
    return {**checkpoint, "protoseg": own}


def test_wrong_input(base: Path, patches: tuple[Path, Path]) -> None:
    old = read_checkpoint(base)
    with pytest.raises(ProtosegError, match=r"expected classes that .* does not have, got Car"):
        add_classes(TrainedFile(base, old), green(patches, "Car"), ["Car"])
    with pytest.raises(ProtosegError, match=r"expected one with statistics .*: protoseg teach statistics makes them"):
        add_classes(TrainedFile(base, without_statistics(old)), green(patches, "patch"), ["patch"])
    with pytest.raises(ProtosegError, match=r"class 'patch': expected pixels of it in the masks, got none"):
        add_classes(TrainedFile(base, old), green(patches, "patch", ids=(7,)), ["patch"])
    with pytest.raises(ProtosegError, match=r"class to refresh in .*base.ckpt: expected classes of .* got patch"):
        refresh_class(TrainedFile(base, old), green(patches, "patch"), "patch")
    with pytest.raises(ProtosegError, match="keep: expected a share"):
        refresh_class(TrainedFile(base, old), green(patches, "Car"), "Car", keep=1.0)
    with pytest.raises(ProtosegError, match="at least one class to be left"):
        remove_classes(TrainedFile(base, old), list(CAMVID.classes))
    with pytest.raises(
        ProtosegError, match=r"two or more, and a name that no other class has, got Car, Sky into 'Tree'"
    ):
        merge_classes(TrainedFile(base, old), ["Car", "Sky"], "Tree")


def test_a_change_fits_its_own_classes_only(base: Path, patches: tuple[Path, Path]) -> None:
    """Its rows are places among them: on others of the same network each class would take another's prototypes."""
    old = read_checkpoint(base)
    added = add_classes(TrainedFile(base, old), green(patches, "patch"), ["patch"])[0]
    removed = remove_classes(TrainedFile(base, old), ["Pole"])
    for first, second in ((added, removed), (removed, added), (removed, removed)):
        with pytest.raises(ProtosegError, match="got another network or other classes"):
            apply_edit(apply_edit(old, first), second)


def test_pixels_of_a_removed_class_stay_ignored_where_a_merge_takes_its_name(base: Path) -> None:
    new = apply_edit(read_checkpoint(base), remove_classes(TrainedFile(base, read_checkpoint(base)), ["Fence"]))
    for names, into in ((["Pole", "SignSymbol"], "Fence"), (["Fence", "Car"], "Car")):
        new = apply_edit(new, merge_classes(TrainedFile(base, new), names, into))
        assert new["protoseg"]["relabel"]["Fence"] is None
        assert new["protoseg"]["relabel"]["Pole"] == into
