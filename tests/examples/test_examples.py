"""What a stranger adds, from outside the package: one file and one YAML each, trained, evaluated and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

import protoseg
from protoseg.checkpoint import read_checkpoint
from protoseg.run.build import build_datamodule
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.conftest import TINY

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = [
    *(setting for setting in TINY if not setting.startswith(("encoder.", "head.", "trainer.max", "trainer.val_"))),
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
]
ENCODER = ["encoder.name=test_resnet", "encoder.pretrained=false"]
ONE = "data.root=STREETS"
PAIR = ("data=streets_day_to_dusk", "data.source.root=STREETS", "data.target.root=STREETS")


class Example(NamedTuple):
    """How an example is chosen, and which doors need the caller's word for its class."""

    group: str
    options: tuple[str, ...] = ()
    load: bool = False
    evaluate: bool = False


CASES = {
    "shufflenet": Example("encoder", (ONE, "encoder.pretrained=false", "encoder.width=x0_5"), load=True, evaluate=True),
    "gaussian_mixture": Example("head", (ONE, "head.num_components=2", "loss=parametric", *ENCODER), True, True),
    "lovasz": Example("loss", (ONE, "head.num_prototypes=2", *ENCODER)),
    "pets": Example("data", ("data.root=PETS", "head.num_prototypes=2", *ENCODER), evaluate=True),
    "cowmix": Example("method", (*PAIR, "head.num_prototypes=2", *ENCODER)),
    "freematch": Example("method", (*PAIR, "method.momentum=0.9", "head.num_prototypes=2", *ENCODER)),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An example with its folder on the path, as PYTHONPATH puts it there."""
    monkeypatch.syspath_prepend(EXAMPLES / request.param)
    return request.param


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the built-in scenes for every split, at a third of their size."""
    root = tmp_path_factory.mktemp("streets")
    for folder in (
        f"{style}/{split}/{kind}"
        for style in ("day", "dusk")
        for split in ("train", "val")
        for kind in ("images", "labels")
    ):
        (root / folder).mkdir(parents=True)
        for file in sorted((Path(protoseg.__file__).parent / "data" / "streets" / folder).iterdir())[:2]:
            with Image.open(file) as picture:
                picture.resize((106, 80), Image.Resampling.NEAREST).save(root / folder / file.name)
    return root


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two pictures of each list, as the data set lies on disk."""
    root, random = tmp_path / "pets", np.random.default_rng(0)
    for split in ("trainval", "test"):
        names = [f"Some_Cat_{split}_{i}" for i in range(2)]
        for stem in names:
            image, mask = root / "images" / f"{stem}.jpg", root / "annotations" / "trimaps" / f"{stem}.png"
            for path, array in (
                (image, random.integers(0, 255, (80, 96, 3), np.uint8)),
                (mask, random.integers(1, 4, (80, 96), np.uint8)),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{stem} 1 1 1\n" for stem in names))
    return root


def test_three_steps_evaluated_and_loaded(
    name: str, pets: Path, streets: Path, tmp_path: Path, configure: Callable[..., DictConfig]
) -> None:
    example = CASES[name]
    options = [option.replace("PETS", str(pets)).replace("STREETS", str(streets)) for option in example.options]
    search = f"hydra.searchpath=['file://{EXAMPLES / name / 'conf'}']"
    # The group's choice stands before the values in it.
    chosen = [search, f"{example.group}={name}", *(option for option in options if "." not in option.split("=")[0])]
    run_training(configure("train", *chosen, *SMALL, *(option for option in options if option not in chosen)))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    section = read_checkpoint(checkpoint)["protoseg"]["config"][example.group]
    assert f"'{name}." in str(section)

    def evaluate(*more: str) -> float | None:
        return run_evaluation(
            configure(
                "evaluate", f"ckpt_path={checkpoint}", "num_workers=0", "save=[]", "device=cpu", *more,
                output=tmp_path / "evaluated",
            )
        )  # fmt: skip

    pixels = torch.zeros(3, 50, 70, dtype=torch.uint8)
    for needed, door in ((example.evaluate, evaluate), (example.load, lambda: protoseg.load(checkpoint, "cpu"))):
        if needed:
            with pytest.raises(ProtosegError, match=rf"trust=\[{name}\]"):
                door()
    score = evaluate(f"trust=[{name}]" if example.evaluate else "trust=[]")
    assert score is not None
    assert 0 <= score <= 1
    model = protoseg.load(checkpoint, "cpu", trust=[name] if example.load else [])
    assert model.predict(pixels).labels.shape == (50, 70)


def test_each_is_one_file_and_one_yaml() -> None:
    for name, example in CASES.items():
        files = {
            str(p.relative_to(EXAMPLES / name)) for p in (EXAMPLES / name).rglob("*") if p.suffix in (".py", ".yaml")
        }
        assert files == {f"{name}.py", f"conf/{example.group}/{name}.yaml"}


def test_a_data_set_without_a_class_reads_what_the_class_reads(
    pets: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., DictConfig]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "pets")
    by_class, by_layout = (
        build_datamodule(configure("train", f"hydra.searchpath=['file://{EXAMPLES / name / 'conf'}']", f"data={name}"))
        for name in ("pets", "pets_layout")
    )
    assert by_class.label_space == by_layout.label_space
    for split in ("trainval", "test"):
        read = [part._make(root=pets, split=split) for part in (by_class, by_layout)]
        assert read[0].samples == read[1].samples
        assert all(np.array_equal(read[0].read(i)[1], read[1].read(i)[1]) for i in range(2))
