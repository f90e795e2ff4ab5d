from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from protoseg.data import CITYSCAPES, AdaptationDataModule, RareClasses, SegmentationDataModule
from protoseg.data.label_spaces import CAMVID_TO_CITYSCAPES
from protoseg.trusted import checked_sections

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(p.stem for p in (CONF / "data").glob("[!_]*.yaml"))
CLASSES = {
    **{"ade20k": 150, "ade20k_full": 847, "coco_stuff": 171, "camvid": 11, "loveda": 7, "potsdam": 6, "vaihingen": 6},
    **{"voc2012": 21, "sbd": 21, "pascal_context": 59, "pascal_context_60": 60, "vistas": 65, "vistas_v2": 116},
    **{"idd": 26, "idd_cityscapes": 19, "vistas_cityscapes": 19, "bdd100k": 19, "foggy_cityscapes": 19, "kitti": 19},
}
OWN = ("folder", "folder_to_folder", "concat")  # which tests/data/test_sources.py makes
PAIRS = [name for name in NAMES if ("_to_" in name or "semi" in name) and name not in OWN]


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+data={name}", "+paths.data=/nowhere", "+seed=3", *overrides]).data


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN])
def test_instantiates_without_data(name: str) -> None:
    cfg = composed(name)
    data = instantiate(cfg)
    assert isinstance(data, AdaptationDataModule if name in PAIRS else SegmentationDataModule)
    assert data.seed == 3
    assert data.label_space.num_classes == CLASSES.get(name, data.label_space.num_classes)
    assert checked_sections({"data": OmegaConf.to_container(cfg, resolve=True)}, ["data"])  # a checkpoint may build it


def test_own_folder_needs_its_file_of_classes(folder: Path) -> None:
    with pytest.raises(InstantiationException, match=r"/nowhere/folder/classes.yaml, which does not exist"):
        instantiate(composed("folder"))
    data = instantiate(composed("folder", f"data.root={folder}", "data.dataset.val_share=0.4"))
    assert data.label_space.classes == ("ground", "café roof", "tree")
    assert (len(data.dataset("train")), len(data.dataset("val"))) == (3, 2)


@pytest.mark.parametrize(("name", "classes"), [("streets_to_cityscapes", 19), ("cityscapes_to_camvid", 11)])
def test_pairs_with_a_named_mapping(name: str, classes: int) -> None:
    data = instantiate(composed(name))
    assert data.source.label_space == data.target.label_space == data.label_space
    assert data.label_space.num_classes == classes
    with pytest.raises(InstantiationException, match="mapping: expected camvid_to_cityscapes or"):
        instantiate(composed(name, "data.mapping=nonsense"))


def test_overrides_reach_the_data_set(camvid: Path) -> None:
    data = instantiate(composed("camvid", f"data.root={camvid}", "data.dataset.sequences=[0001TP]"))
    assert len(data.dataset("train")) == 3
    data = instantiate(composed("streets", "data.dataset.style=dusk"))
    assert len(data.dataset("train")) == 120


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_share_their_settings(name: str) -> None:
    cfg = composed(name, "data.batch_size=5", "data.crop_size=[8,8]", "data.num_workers=0", "data.val_batch_size=7")
    for part in (cfg.source, cfg.target):  # what --cfg job shows is what is used
        assert (part.batch_size, part.crop_size, part.num_workers, part.val_batch_size) == (5, [8, 8], 0, 7)
    data = instantiate(cfg)
    for made in (data.source, data.target):
        assert (made.batch_size, made.num_workers, made.val_batch_size) == (5, 0, 7)
    assert data.source.labels
    assert not data.target.labels


def test_pair_reads_both_ends(camvid: Path) -> None:
    rare = "{_target_:protoseg.data.RareClasses,min_pixels:5}"
    overrides = [f"data.source.root={camvid}", f"data.target.root={camvid}", f"data.rare_classes={rare}"]
    overrides += ["data.source.dataset.sequences=[0006R0]", "data.validate_source=true"]
    data = instantiate(composed("camvid_day_to_dusk", *overrides))
    data.setup("fit")
    assert {image.name[:6] for image, _ in data.source.train_dataset().samples} == {"0006R0"}
    assert {image.name[:6] for image, _ in data.target.train_dataset().samples} == {"0001TP"}
    assert data.source.rare_classes == RareClasses(0.01, 5, 0.5)
    assert data.target.rare_classes is None
    day_to_dusk = instantiate(composed("streets_day_to_dusk"))
    day_to_dusk.setup("fit")
    assert len(day_to_dusk.source.train_dataset()) == 200
    assert len(day_to_dusk.target.train_dataset()) == 120


def test_the_docs_list_every_data_set() -> None:
    pages = "".join((CONF.parent / "docs" / page).read_text() for page in ("data.md", "recipes.md", "own_data.md"))
    assert [name for name in NAMES if f"`{name}`" not in pages and f"`data={name}" not in pages] == []


def test_cityscapes_and_camvid_are_joined_by_name(cityscapes: Path, camvid: Path) -> None:
    roots = (
        "data.parts.cityscapes.val_split=null",
        f"data.parts.cityscapes.root={cityscapes}",
        f"data.parts.camvid.root={camvid}",
        "data.num_workers=0",
    )
    cfg = composed("cityscapes_and_camvid", *roots)
    assert cfg.parts.camvid.relabel == CAMVID_TO_CITYSCAPES  # written out there, for all to read
    assert cfg.parts.camvid.annotated == list(CAMVID_TO_CITYSCAPES.values())
    data = instantiate(cfg)
    assert data.label_space.classes == CITYSCAPES.classes
    data.setup("fit")
    part = data.parts["camvid"].train_dataset()
    labels = {int(label) for i in range(len(part)) for label in np.unique(part.read(i)[1])} - {-1, 255}
    names = {CITYSCAPES.classes[label] for label in labels}
    assert {"road", "rider"} <= names <= set(CAMVID_TO_CITYSCAPES.values())
    assert [CITYSCAPES.classes[i] for i in data.parts["camvid"]._hidden] == []
