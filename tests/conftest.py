"""Composed configs, and a run small enough for a test."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig, open_dict

import protoseg
from protoseg.evaluation.curves import curves_figure
from tests.two_ranks import TwoRanks

CONF = Path(__file__).parents[1] / "conf"
BUILT_IN = Path(protoseg.__file__).parent / "data" / "streets"

TINY = (
    "encoder.name=test_efficientnet",
    "encoder.pretrained=false",
    "decoder.pyramid_channels=16",
    "decoder.segmentation_channels=32",
    "head.num_prototypes=2",
    "data.crop_size=[64,64]",
    "data.batch_size=2",
    "data.num_workers=0",
    "trainer.max_steps=6",
    "schedule.warmup_steps=0",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "callbacks.progress=null",
    "callbacks.dashboard=null",
)
"""A whole training run in about two seconds: random weights, the built-in data, no panels."""
SAVED = "callbacks.last.every_n_train_steps=1"
"""Added to TINY where last.ckpt is wanted before the end of the run; to write it after each step takes time."""
DRAWN = TINY[:-1]
"""The same with its panels and curves, whose drawing takes time."""


@contextmanager
def at_most(seconds: float, what: object = None) -> Iterator[None]:
    """So much work and no more, whoever else works on the machine: seconds of this process's threads, not the clock's.

    For what a stranger's file must not make endless; how fast something is belongs to the benchmarks.
    """
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds, what


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest, trainings and whole commands, come first: at the end one would keep a core waiting."""
    items.sort(key=lambda item: item.path.parent.name not in ("training", "tests"))


def pytest_collection_finish() -> None:
    """What was imported stays: Python need not look again and again whether it is still wanted; of the rest, seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    # Threads that share a core wait for one another in turns.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(2, cores // workers)))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Statistics of data sets in folders that cannot be written go to the user's cache: not while testing."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def few_streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in data with seven images in each split: for tests in which whole splits are judged."""
    from protoseg.data import Streets

    root = tmp_path_factory.mktemp("streets")
    for style, split in (("day", "train"), ("day", "val"), ("dusk", "train"), ("dusk", "val")):
        for file in itertools.chain.from_iterable(Streets(style=style, split=split).samples[:7]):
            assert file is not None
            place = root / file.relative_to(BUILT_IN)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return root


@pytest.fixture(scope="session")
def pair_of_ranks() -> Iterator[list[TwoRanks]]:
    pair: list[TwoRanks] = []
    yield pair
    for ranks in pair:
        ranks.close()


@pytest.fixture
def two_ranks(pair_of_ranks: list[TwoRanks], tmp_path: Path) -> TwoRanks:
    """Two processes of one group; those that an earlier test had, unless it broke them."""
    if not pair_of_ranks or not pair_of_ranks[-1].alive:
        pair_of_ranks.append(TwoRanks(tmp_path))
    return pair_of_ranks[-1]


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """A composed config, to be copied: composing takes a fifth of a second, and tests repeat the same words."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [*overrides], return_hydra_config=True)


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DictConfig]]:
    """``configure(config_name, *overrides)``: the composed config, with its output folder in ``tmp_path``.

    Curves of a run that draws no panels are an empty picture.
    """

    def make(name: str = "train", *overrides: str, output: Path = tmp_path / "run") -> DictConfig:
        curves = (lambda run: Figure(figsize=(1, 1))) if TINY[-1] in overrides else curves_figure
        monkeypatch.setattr("protoseg.run.train.curves_figure", curves)
        cfg = _composed(name, overrides).copy()
        cfg.paths.output = str(output)
        cfg.hydra.overrides.task.append(f"paths.output={output}")
        HydraConfig.instance().set_config(cfg)
        task = cfg.copy()
        with open_dict(task):
            del task["hydra"]  # as a task gets it
        return task

    yield make
    HydraConfig.instance().cfg = None
