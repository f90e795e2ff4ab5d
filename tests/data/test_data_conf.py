from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from protoseg.data import SegmentationDataModule

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(p.stem for p in (CONF / "data").glob("[!_]*.yaml"))


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+data={name}", "+paths.data=/nowhere", "+seed=3", *overrides]).data


@pytest.mark.parametrize("name", NAMES)
def test_instantiates_without_data(name: str) -> None:
    data = instantiate(composed(name))
    assert isinstance(data, SegmentationDataModule)
    assert data.seed == 3
    assert data.label_space.num_classes in (11, 19)


def test_overrides_reach_the_data_set(camvid: Path) -> None:
    data = instantiate(composed("camvid", f"data.root={camvid}", "data.dataset.sequences=[0001TP]"))
    assert len(data.dataset("train")) == 3
    data = instantiate(composed("streets", "data.dataset.style=dusk"))
    assert len(data.dataset("train")) == 120
