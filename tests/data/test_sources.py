"""One's own target without masks (``data=folder_to_folder``), and several data sets as one (``data=concat``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from protoseg.cli.main import run_tool
from protoseg.data import ConcatDataModule, SegmentationDataModule
from protoseg.data.loading import StepBatchSampler
from protoseg.data.transforms import A
from protoseg.run.build import build_datamodule
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.types import ProtosegError
from tests.data.helpers import batches, trainer
from tests.data.test_data_conf import composed
from tests.data.test_train_every_dataset import SMALL

CLASSES = "classes: [sky, road, car]\nthings: [car]\n"
Configure = Callable[..., DictConfig]


def scenes(root: Path, count: int, masks: int = 0, classes: str = CLASSES) -> Path:
    """``count`` images of 32 x 32, the first ``masks`` of them with masks of all three classes."""
    for i in range(count):
        label = np.repeat(np.array([0, 1, 2], np.uint8), (10 + i % 5, 20 - i % 5, 2))[:, None].repeat(32, 1)
        for kind, pixels in (("images", (label[..., None] * [90, 60, 30]).astype(np.uint8)), ("masks", label)):
            if kind == "images" or i < masks:
                (root / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / kind / f"{i}.png")
    (root / "classes.yaml").write_text(classes)
    return root


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, ...]:
    """The settings of a pair of folders, the target's images in the folder itself, without masks and classes."""
    scenes(tmp_path / "labelled", 5, 5)
    scenes(tmp_path / "photos", 4)
    shutil.move(tmp_path / "photos" / "images", tmp_path / "target")
    return ("data=folder_to_folder", f"data.source.root={tmp_path}/labelled", f"data.target.root={tmp_path}/target")


@pytest.mark.parametrize(
    "method",
    [
        ("method=daformer", "contrast=pgpc"),
        pytest.param(("method=dacs",), marks=pytest.mark.slow),
        pytest.param(("method=mic", "method.terms.masked.block_size=16"), marks=pytest.mark.slow),
    ],
)
def test_photos_without_masks(
    method: tuple[str, ...],
    own: tuple[str, ...],
    configure: Configure,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert np.isnan(run_training(configure("train", *SMALL, *method, *own)))
    said = capsys.readouterr().out
    assert "none: nothing was validated" in said
    assert "Nothing is known of how right it is. Look at it: python evaluate.py ckpt_path=" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    checkpoint = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    options = (checkpoint, "num_workers=0", "device=cpu")
    for report in ("false", "true"):
        with pytest.raises(
            ProtosegError, match=r"expected a split with masks to judge by, got none \(val_split=null\)"
        ):
            run_evaluation(configure("evaluate", *options, f"report={report}", output=tmp_path / "judged"))
    run_evaluation(
        configure("evaluate", *options, "mode=predict", f"images={tmp_path}/target", output=tmp_path / "out")
    )
    assert len([*(tmp_path / "out" / "labels").iterdir()]) == 4


def test_a_benchmark_as_the_source_gives_the_classes(own: tuple[str, ...]) -> None:
    data = instantiate(composed("folder_to_folder", "data@data.source=streets", *own[2:], "data.num_workers=0"))
    assert data.label_space.num_classes == 11
    assert len(data.target.train_dataset()) == 4
    assert batches(data, 1)[0].target.label.unique().tolist() == [-1]


def test_folders_that_make_no_pair(own: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = instantiate(composed("folder_to_folder", *own[1:], f"data.target.root={tmp_path}/empty"))
    with pytest.raises(ProtosegError, match=r"empty: expected one folder of images .* got no folder"):
        empty.setup("fit")
    same = instantiate(composed("folder_to_folder", *own[1:], f"data.target.root={tmp_path}/labelled"))
    with pytest.warns(UserWarning, match=r"expected a target of other images than the source, got 4 of 4 that the so"):
        same.setup("fit")
    with pytest.raises(InstantiationException, match=r"validate_source: expected a target that is validated too"):
        instantiate(composed("folder_to_folder", *own[1:], "data.validate_source=true"))
    bare = instantiate(composed("folder_to_folder", "data@data.source=streets", *own[2:], "data.target.val_split=val"))
    with pytest.raises(ProtosegError, match=r"dataset\.classes: expected the file that says what the masks in"):
        bare.target.prepare_validation()


@pytest.fixture
def two(tmp_path: Path) -> dict[str, str]:
    """Settings of two folders, of which the second has its classes in another order and twice the images."""
    scenes(tmp_path / "a", 5, 5)
    scenes(tmp_path / "b", 10, 10, "classes: [car, road, sky]\nids: {sky: 0, road: 1, car: 2}")
    return {name: f"{tmp_path}/{name}" for name in "ab"}


def concat(two: dict[str, str], *overrides: str, at: str = "data") -> tuple[str, ...]:
    parts = [x for n, root in two.items() for x in (f"+data@{at}.parts.{n}=folder", f"{at}.parts.{n}.root={root}")]
    return (*parts, *(f"{at}.{override}" for override in overrides))


def made(*overrides: str) -> ConcatDataModule:
    return instantiate(composed("concat", *overrides, "data.num_workers=0", "data.crop_size=[8,8]"))  # type: ignore[no-any-return]


def judged(folder: Path, configure: Configure) -> float | None:
    """The score of a run's best checkpoint, by nothing but what that says."""
    checkpoint = f"ckpt_path={folder}/run/checkpoints/best.ckpt"
    return run_evaluation(
        configure("evaluate", checkpoint, "num_workers=0", "device=cpu", "save=[]", output=folder / "judged")
    )


def test_a_few_labelled_images_of_the_target_and_several_sources(
    two: dict[str, str], configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = scenes(tmp_path / "few", 6, 2)
    (few / "val.txt").write_text("0.png\n1.png\n")
    source = ("data@data.source=concat", *concat(two, "weights={a: 1, b: 3}", at="data.source"))
    target = ("root", few), ("val_split", "val"), ("dataset.classes", few / "classes.yaml")
    settings = (*source, *(f"data.target.{key}={value}" for key, value in target))
    run_tool("data", ["check", "folder_to_folder", *settings])
    said = capsys.readouterr().out
    assert "source b train: 8 images and 8 masks read" in said
    assert "target train: 4 images and 0 masks read" in said
    assert "target val: 2 images and 2 masks read" in said
    run_training(configure("train", *SMALL, "method=dacs", "data=folder_to_folder", *settings))
    assert judged(tmp_path, configure) is not None


def test_parts_are_read_as_the_same_classes(two: dict[str, str]) -> None:
    data = made(*concat(two, "parts.b.scale=[2,2]", "parts.a.val_split=null"))
    train, val = data.train_dataset(), data.dataset(data.val_split)
    assert (len(train), len(val)) == (4 + 8, 2)
    for index, (_, mask) in enumerate(train.samples):
        assert np.array_equal(train.read_label(index), np.asarray(Image.open(str(mask))))
    assert [train.locate(i)[0].transform._crop.scale for i in (0, 11)]  # type: ignore[union-attr]
    counts = data.class_statistics()
    expected = [np.bincount(np.asarray(Image.open(str(mask))).ravel(), minlength=3) for _, mask in train.samples]
    assert np.array_equal(counts.counts, expected)
    assert np.array_equal(counts.pixels, np.sum(expected, 0))


def test_weights_hold_for_the_order_the_statistics_and_rare_classes(two: dict[str, str]) -> None:
    rare = "{_target_: protoseg.data.RareClasses, temperature: 1000, min_pixels: 0}"
    weighted = concat(two, "weights={b: 1, a: 4}")
    data = made(*weighted)
    counts = data.class_statistics()
    of_a, of_b = counts.counts[:4].mean(0), counts.counts[4:].mean(0)
    assert data.class_frequencies().numpy() == pytest.approx((4 * of_a + of_b) / (4 * of_a + of_b).sum(), abs=1e-6)
    for module in (data, made(*weighted, f"+data.rare_classes={rare}")):
        names = [name for batch in batches(module, 25) for name in batch.name]
        share = sum(Path(name).is_relative_to(two["a"]) for name in names) / len(names)
        assert share == pytest.approx(0.8, abs=0.1)


def test_weighted_epochs() -> None:
    weights = np.repeat([9 / 30, 1 / 70], [30, 70])
    options: dict[str, Any] = {"num_samples": 100, "batch_size": 2, "seed": 5, "weights": weights}
    whole = [item for batch in StepBatchSampler(num_batches=200, **options) for item in batch]
    epochs = [[index for index, _ in whole[start : start + 100]] for start in (0, 100, 200, 300)]
    for epoch in epochs:
        assert sum(index < 30 for index in epoch) == pytest.approx(90, abs=1)
        assert {epoch.count(i) for i in range(30)} <= {3, 2, 4}
        assert max(epoch.count(i) for i in range(30, 100)) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({index for epoch in epochs for index in epoch}) > 50
    ranks = [StepBatchSampler(num_batches=100, **options, rank=rank, world=2, start=3) for rank in (0, 1)]
    assert [item for both in zip(*ranks, strict=True) for batch in both for item in batch] == whole[12:]


def test_a_run_goes_on_with_the_same_shares_alone(two: dict[str, str], tmp_path: Path) -> None:
    data, other = made(*concat(two, "weights={a: 1, b: 1}")), made(*concat(two))
    state = data.state_dict()
    for module in (data, other):
        module.trainer = trainer(tmp_path)
        module.trainer.state.fn = "fit"  # type: ignore[assignment]
    data.load_state_dict(state)
    with pytest.raises(ProtosegError, match=r"resume: expected weights=\[0\.125, 0\.25\], as in the checkpoint"):
        other.load_state_dict(state)


@pytest.mark.slow
def test_trains_alone(two: dict[str, str], configure: Configure, tmp_path: Path) -> None:
    run_training(configure("train", *SMALL, "data=concat", *concat(two, "weights={a: 1, b: 3}")))
    assert judged(tmp_path, configure) is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.weights={a: 1}",
            r"expected a number above 0 for each part with a train_split, a, b, got a: 1: to leave",
        ),
        ("data.weights={a: 1, b: 0}", r"got a: 1, b: 0"),
        ("data.weights={a: 1, b: -2}", r"got a: 1, b: -2"),
        ("data.weights={a: 1, b: 1, c: 1}", r"got a: 1, b: 1, c: 1"),
        (
            "data.parts.b.relabel={sky: null}",
            r"expected the same classes in all parts, got sky in only one of a and b: set d",
        ),
        ("data.parts.b.relabel={sky: air}", r"got air, sky in only one of a and b"),
        ("+data.scale=[1,1]", r"data: expected scale of each part \(data\.parts\.NAME\), got it for all"),
    ],
)
def test_parts_that_do_not_fit(two: dict[str, str], override: str, message: str) -> None:
    with pytest.raises(InstantiationException, match=r"data\.parts: expected data sets, got none"):
        made()
    with pytest.raises(InstantiationException, match=message):
        made(*concat(two), override)


def test_check_tells_of_each_part(two: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("data", ["check", "concat", *concat(two)])
    assert "b val: 2 images and 2 masks read" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_tool("data", ["check", "concat", *concat(two | {"c": two["a"]})])
    assert "expected every image once, got the same file in a train" in capsys.readouterr().out
    assert isinstance(made(*concat(two)), SegmentationDataModule)


def test_augmentation_is_for_both_sides_of_a_pair_and_for_every_part(two: dict[str, str], configure: Configure) -> None:
    pair = build_datamodule(configure("train", "data=streets_day_to_dusk", "augment=aerial"))
    joined: Any = build_datamodule(configure("train", "data=concat", *concat(two), "augment=aerial"))
    for each in (pair.source, pair.target, joined, *joined.parts.values()):
        assert type(each.transform._rgb.transforms[-1]) is A.D4
    plain: Any = build_datamodule(configure("train", "data=concat", *concat(two)))
    assert type(plain.parts["a"].transform._rgb.transforms[-1]) is A.ColorJitter
