"""Data sets that annotate some of the classes: what training, statistics and evaluation see of the other pixels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from protoseg.data import CAMVID, CamVid, ConcatDataModule, SegmentationDataModule
from protoseg.data.label_spaces import NOT_ANNOTATED, mapping_table
from protoseg.run.build import build_datamodule, build_module
from protoseg.run.evaluate import open_checkpoint, open_data
from protoseg.run.train import run_training
from protoseg.types import IGNORE_INDEX, LabelSpace, ProtosegError
from tests.conftest import TINY
from tests.data.helpers import batches
from tests.data.test_channels import folder, numbers
from tests.data.test_data_conf import composed
from tests.data.test_sources import Configure, scenes

OBJECTS = [CAMVID.classes.index(name) for name in ("Car", "Pedestrian", "Bicyclist")]
SCENE = [i for i in range(11) if i not in OBJECTS]
NAMES = {"objects": [CAMVID.classes[i] for i in OBJECTS], "scene": [CAMVID.classes[i] for i in SCENE]}


def part(root: Path, kind: str | None, **options: Any) -> SegmentationDataModule:
    annotated = None if kind is None else NAMES[kind]
    own: dict[str, Any] = {"num_workers": 0, "root": str(root), "scale": (1.0, 1.0), "annotated": annotated, **options}
    return SegmentationDataModule(CamVid, 2, [24, 32], **own)


def halves(root: Path, **options: Any) -> ConcatDataModule:
    """The dusk images with their objects, those by day with the scene; all classes of val."""
    parts = {
        "objects": part(root, "objects", val_split=None),
        "scene": part(root, "scene", val_split=None),
        "judge": part(root, None, train_split=None),
    }
    return ConcatDataModule(parts, [24, 32], batch_size=4, num_workers=0, photometric=False, **options)


def test_a_batch_says_what_its_pixels_may_be(camvid: Path) -> None:
    data, whole = halves(camvid), part(camvid, None).dataset("train")
    true = {Path(path).name: whole[i].label for i, (path, _) in enumerate(whole.samples)}
    seen = set()
    for batch in batches(data):
        assert batch.rest is not None
        assert (batch.rest.pixels.dtype, batch.rest.pixels.shape) == (torch.bool, batch.label.shape)
        for label, pixels, classes, name in zip(batch.label, *batch.rest, batch.name, strict=True):
            full = true[Path(name).name]
            turned = min((full, full.flip(1)), key=lambda each, a=label: int((each != a).sum()))  # flips are drawn
            rest = classes.nonzero().flatten().tolist()
            assert rest in (OBJECTS, SCENE)
            seen.add(len(rest))
            assert torch.equal(pixels, torch.isin(turned, torch.tensor(rest)))
            assert torch.equal(label, turned.where(~pixels, IGNORE_INDEX))
    assert seen == {3, 8}


def test_everything_but_the_loss_takes_the_rest_as_ignored(camvid: Path) -> None:
    data, whole = part(camvid, "objects"), part(camvid, None)
    label, full = (each.dataset("val")[0].label for each in (data, whole))
    assert torch.equal(label, full.where(torch.isin(full, torch.tensor(OBJECTS)), IGNORE_INDEX))
    counts, of_all = data.class_statistics().counts, whole.class_statistics().counts
    assert np.array_equal(counts[:, OBJECTS], of_all[:, OBJECTS])
    assert counts[:, SCENE].sum() == 0
    assert data.unlabelled == SCENE  # which have no IoU
    assert "pixels of classes not annotated (Sky, Building, " in data.dataset("val").notes[0]
    assert batches(whole, 1)[0].rest is None
    for wrong, got in (([1], "1"), ("Car", "'Car', no list"), ([True, "Car"], "True")):
        with pytest.raises(ProtosegError, match=rf"annotated: expected classes of .*, got {got}; correct the names"):
            part(camvid, None, annotated=wrong)
    assert (halves(camvid).class_statistics().counts.sum(0) > 0).all()


def test_parts_are_drawn_by_weight_beside_one_that_is_only_judged_by(camvid: Path) -> None:
    data = halves(camvid, weights={"objects": 9, "scene": 1})
    weights, number = data.train_dataset().weights, len(data.parts["objects"].train_dataset())
    assert weights is not None
    assert (weights[:number].sum(), weights[number:].sum()) == (pytest.approx(9), pytest.approx(1))
    assert data.dataset("val").weights is None
    old = halves(camvid, weights={"objects": 9, "scene": 1, "judge": 1}).train_dataset().weights
    assert np.array_equal(old, weights)
    for wrong in ({"objects": 9}, {"objects": 9, "scene": 1, "other": 1}):
        with pytest.raises(ProtosegError, match="for each part with a train_split, objects, scene, got objects: 9"):
            halves(camvid, weights=wrong)


def test_a_mapping_that_merges_what_is_annotated_with_what_is_not(camvid: Path) -> None:
    """A pixel of the rest may be a bicyclist, which is read as a car here: so it may be a car."""
    names = tuple(name for name in CAMVID.classes if name != "Bicyclist")
    space = LabelSpace("merged", names, CAMVID.colors[: len(names)])
    data = part(camvid, None, annotated=["Car"])
    data.map_classes(space, {name: "Car" if name == "Bicyclist" else name for name in CAMVID.classes})
    assert data.rest == list(range(len(names)))
    assert names.index("Car") not in data.unlabelled
    with pytest.raises(
        ProtosegError, match=r"in one of the data sets of the training, got Sky, .*Fence, Pedestrian in"
    ):
        data.prepare_training()


def test_all_is_judged_where_all_is_annotated(camvid: Path) -> None:
    data = halves(camvid)
    assert data.unlabelled == []
    assert torch.equal(data.dataset("val")[0].label, part(camvid, None).dataset("val")[0].label)


def test_label_spaces_are_joined_by_name(tmp_path: Path) -> None:
    """Two folders whose first class is all that the one, or the other, does not annotate."""
    scenes(tmp_path / "a", 3, 3, "classes: [other, road, car]\nthings: [car]\n")
    scenes(tmp_path / "b", 3, 3, "classes: [other, tree, road]\n")
    parts = [f"+data@data.parts.{name}=folder" for name in "ab"]
    roots = [f"data.parts.{name}.root={tmp_path / name}" for name in "ab"]
    relabel = [f"data.parts.{name}.relabel={{other: {NOT_ANNOTATED}}}" for name in "ab"]
    data = instantiate(composed("concat", *parts, *roots, *relabel, "data.num_workers=0", "data.crop_size=[32,32]"))
    assert data.label_space.classes == ("road", "car", "tree")
    assert data.label_space.things == ("car",)
    assert len({*data.label_space.colors}) == 3  # tree and road had the same
    rest = {"a": [2], "b": [1]}
    for batch in batches(data, 2):
        for label, pixels, classes, name in zip(batch.label, *batch.rest, batch.name, strict=True):
            own = rest[Path(name).parts[-3]]
            assert classes.nonzero().flatten().tolist() == own
            assert not (label[pixels] >= 0).any()
            assert not set(label.unique().tolist()) & set(own)
    with pytest.raises(InstantiationException, match=r"in only one of a and b.*annotated, which joins them by name"):
        instantiate(composed("concat", *parts, *roots))


@pytest.mark.parametrize(
    ("annotated", "message"),
    [(["Car", "Dog"], r"data.annotated: expected classes of the label space 'camvid' .*, got Dog"), ([], "got none")],
)
def test_unknown_classes(annotated: list[str], message: str, camvid: Path) -> None:
    with pytest.raises(ProtosegError, match=message):
        part(camvid, None, annotated=annotated)
    with pytest.raises(ProtosegError, match="annotated of each part"):
        halves(camvid, annotated=["Car"])


def test_a_class_that_nothing_annotates(camvid: Path) -> None:
    with pytest.raises(ProtosegError, match="expected every class in one of the data sets of the training, got Sky, "):
        part(camvid, "objects").setup("fit")
    halves(camvid).setup("fit")


def test_a_class_is_never_taken_for_the_rest() -> None:
    """Not even where another data set beside it has classes that it does not annotate."""
    space = LabelSpace("many", tuple(map(str, range(254))), ((1, 2, 3),) * 254)
    for other in (NOT_ANNOTATED, "3"):
        with pytest.raises(ProtosegError, match="at most 253 classes, got 'many' of 254"):
            mapping_table(space, space, {name: name if name != "3" else other for name in space.classes})


@pytest.mark.parametrize("head", ["parametric", "prototype"])
def test_a_training(
    head: str, few_streets: Path, tmp_path: Path, configure: Configure, recwarn: pytest.WarningsRecorder
) -> None:
    tiny = [option for option in TINY if head == "prototype" or not option.startswith("head.")]
    parts = [f"+data@data.parts.{kind}=streets" for kind in NAMES]
    own = [f"data.parts.{kind}.annotated=[{','.join(names)}]" for kind, names in NAMES.items()]
    own += [f"data.parts.{kind}.root={few_streets}" for kind in NAMES]
    loss = ("loss.ce.class_weights=balanced", "data.parts.objects.val_split=null", "trainer.max_steps=2")
    run = configure("train", "data=concat", f"head={head}", *parts, *tiny, *own, *loss)
    assert run_training(run) >= 0
    assert any("pixels of classes not annotated" in str(warning.message) for warning in recwarn)
    with open(tmp_path / "run" / "logs" / "metrics.csv") as file:
        last = [*csv.DictReader(file)][-1]
    iou = {name: float(last[f"val/IoU/{name}"]) for name in ("Car", "Road")}
    assert np.isnan(iou["Car"])  # validated on the scene alone
    assert iou["Road"] >= 0
    cached = {"_target_": "protoseg.callbacks.cached.CachedViews", "folder": str(tmp_path / "views")}
    OmegaConf.update(run, "callbacks.cached", cached, force_add=True)
    run.overwrite = True
    with pytest.raises(ProtosegError, match="all classes annotated, got adaptation, "):
        run_training(run)


def test_several_data_sets_are_judged_as_the_network_saw_them(tmp_path: Path, configure: Configure) -> None:
    root = folder(tmp_path / "d", 1, ".png")
    for file in (root / "images").iterdir():  # of 16 bits
        assert cv2.imwrite(str(file), numbers(3))
    of_one = ("data=folder", f"data.root={root}", "data.dataset.image_range=[0,4095]")
    cfg = configure("train", *TINY, *of_one)
    build_module(cfg, build_datamodule(cfg).label_space).save(tmp_path / "a.ckpt")
    seen = []
    for words in (of_one[:2], ("data=concat", "+data@data.parts.x=folder", f"data.parts.x.root={root}")):
        again = configure("evaluate", f"ckpt_path={tmp_path / 'a.ckpt'}", "num_workers=0", "device=cpu", *words)
        seen.append(open_data(again, open_checkpoint(again)).target.dataset("val")[0].image)
    assert torch.equal(*seen)
    pair = [f"data.{side}.root={root}" for side in ("source", "target")]
    cfg = configure("evaluate", f"ckpt_path={tmp_path / 'a.ckpt'}", "num_workers=0", "data=folder_to_folder", *pair)
    both = open_data(cfg, open_checkpoint(cfg))
    assert both.source.dataset("train").reader.ranges == both.target.dataset("val").reader.ranges == [(0, 4095)]
