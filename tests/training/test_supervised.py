"""The training module: what it logs, writes and refuses."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from protoseg.callbacks.loggers import PrototypeMemoryCallback
from protoseg.checkpoint import read_checkpoint
from protoseg.losses import CrossEntropy, Step
from protoseg.models.segmentor import Segmentor
from protoseg.nn import PrototypeMemory
from protoseg.run.build import build_datamodule, build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import in_words, run_training, validation_interval
from protoseg.trained import TrainedFile, open_file
from protoseg.types import ProtosegError
from tests.conftest import DRAWN, SAVED, TINY


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "logs" / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_writes_what_it_says(configure: Callable[..., DictConfig], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    run_training(
        configure("train", *DRAWN, "data.batch_size=4", "trainer.max_steps=40", "trainer.val_check_interval=20")
    )
    run = tmp_path / "run"
    log = rows(run)
    assert [int(row["step"]) for row in log] == [*range(40)]  # one row a step, whatever is logged when
    losses = [float(row["train/ce"]) for row in log]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    columns = set(log[0])
    assert {"train/ppc", "train/ppd", "train/images_per_s", "val/mIoU", "val/pixel_accuracy", "val/IoU/Car"} <= columns
    assert {"prototypes/diversity", "prototypes/moved", "prototypes/balance"} <= columns
    assert any(column.startswith("lr-") for column in columns)
    for name in (
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "curves.png",
        "panels/step_000020.png",
        "panels/occupancy_000020.png",
    ):
        assert (run / name).stat().st_size > 0
    assert Image.open(run / "curves.png").width > 1000
    printed = capsys.readouterr().out
    assert "best val mIoU" in printed
    assert "best.ckpt" in printed


def test_without_validation_no_score_is_told(configure: Callable[..., DictConfig], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert math.isnan(run_training(configure("train", *TINY, "trainer.limit_val_batches=0", "trainer.max_steps=1")))
    printed = capsys.readouterr().out
    assert printed.count("none: nothing was validated") == 2
    assert "Epoch" not in printed  # callbacks.progress=null: nor a bar of Lightning's own
    assert "inf" not in printed
    assert in_words(-math.inf, True) == in_words(math.nan, True) == "none: no validated pixel was labelled"


def test_the_checkpoint_is_complete_and_evaluates_alone(
    configure: Callable[..., DictConfig], few_streets: Path, tmp_path: Path
) -> None:
    # All validation images, so that training and evaluation judge the same.
    all_of_few = ("trainer.limit_val_batches=1.0", f"data.root={few_streets}")
    best = run_training(configure("train", *TINY, *all_of_few, "trainer.max_steps=3"))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(path)
    assert checkpoint["protoseg"]["config"]["head"]["num_prototypes"] == 2
    assert checkpoint["SegmentationDataModule"]["batches"] == 3
    memory = {name for name in checkpoint["state_dict"] if ".memory." in name}
    assert memory == {f"model.head.memory.{name}" for name in ("prototypes", "updates", "occupancy")}
    score = run_evaluation(configure("evaluate", f"ckpt_path={path}", "num_workers=0", output=tmp_path / "evaluation"))
    assert score == pytest.approx(best, abs=1e-6)
    assert (tmp_path / "evaluation" / "metrics.json").is_file()

    dusk = configure(
        "evaluate",
        f"ckpt_path={path}",
        "data=streets",
        f"data.root={few_streets}",
        "data.dataset.style=dusk",
        "num_workers=0",
        "save=[]",
        output=tmp_path / "d",
    )
    assert run_evaluation(dusk) != pytest.approx(best, abs=1e-6)
    again = (f"ckpt_path={path}", "num_workers=0", "save=[]")
    assert run_evaluation(configure("evaluate", *again, output=tmp_path / "d")) == pytest.approx(best, abs=1e-6)
    (tmp_path / "evaluation" / "mine").mkdir()
    with pytest.raises(ProtosegError, match=r"expected no results of another command, got labels, .*overwrite=true"):
        run_evaluation(configure("evaluate", *again, "split=train", output=tmp_path / "evaluation"))
    assert any((tmp_path / "evaluation" / "labels").iterdir())
    run_evaluation(configure("evaluate", *again, "split=train", "overwrite=true", output=tmp_path / "evaluation"))
    assert {"mine", "metrics.json"} <= {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert not (tmp_path / "evaluation" / "labels").exists()  # of the numbers that were there before
    with pytest.raises(ProtosegError, match=r"inference: expected a choice.*'scales'.*; add inference=auto"):
        run_evaluation(configure("evaluate", f"ckpt_path={path}", "+inference.scales=[2.0]", "num_workers=0"))


def test_predict_a_folder(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2
    import numpy as np

    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    images = tmp_path / "images"
    images.mkdir()
    for i, size in enumerate(((30, 50), (61, 47))):
        cv2.imwrite(str(images / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8))
    output = tmp_path / "prediction"
    words = ("mode=predict", f"images={images}")
    assert run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", *words, output=output)) is None
    label = cv2.imread(str(output / "labels" / "1.png"), cv2.IMREAD_COLOR)
    assert label.shape == (61, 47, 3)

    same = shutil.copy(checkpoint, tmp_path / "same.ckpt")
    assert run_evaluation(configure("evaluate", f"ckpt_path={same}", *words, "inference=auto", output=output)) is None
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["model.head.memory.prototypes"].mul_(-1)
    torch.save(content, other := tmp_path / "other.ckpt")
    with pytest.raises(ProtosegError, match=r"of another command, got labels, overlays of that in made_by.json"):
        run_evaluation(configure("evaluate", f"ckpt_path={other}", *words, output=output))
    run_evaluation(configure("evaluate", f"ckpt_path={other}", *words, "overwrite=true", output=output))

    compiled: list[dict[str, object]] = []
    monkeypatch.setattr(Segmentor, "compile", lambda self, **options: compiled.append(options))
    run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", *words, "compile=true", output=tmp_path / "again"))
    assert compiled == [{"dynamic": False}]

    with pytest.raises(ProtosegError, match="images=FOLDER"):
        run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", "mode=predict"))
    with pytest.raises(ProtosegError, match="expected one of evaluate, predict"):
        run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", "mode=test"))


def test_checkpoint_of_another_class_count(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match="11 classes"):
        run_evaluation(configure("evaluate", f"ckpt_path={path}", "data=cityscapes", "num_workers=0"))
    content = read_checkpoint(path)
    space = content["protoseg"]["label_space"]
    space |= {key: space[key] + [space[key][0] if key == "colors" else "more"] for key in ("classes", "colors")}
    with pytest.raises(ProtosegError, match="do not fit"):
        TrainedFile(path, content).model()


def test_nan_loss_stops_with_step_and_files_and_keeps_the_checkpoint(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CrossEntropy.forward
    calls = []

    def broken(self: CrossEntropy, batch: Step) -> torch.Tensor:
        calls.append(None)
        return original(self, batch) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(CrossEntropy, "forward", broken)
    with pytest.raises(ProtosegError, match=r"not finite at step 2: ce=nan.*\.jpg"):
        run_training(configure("train", *TINY, SAVED))
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(t.isfinite().all() for t in checkpoint["state_dict"].values())


def test_no_override_of_the_callbacks_can_lose_the_memory(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    original = PrototypeMemory.step
    monkeypatch.setattr(PrototypeMemory, "step", lambda self: (steps.append(None), original(self)))
    overrides = [override for override in TINY if not override.startswith("callbacks")]
    run_training(configure("train", *overrides, "~callbacks", "trainer.max_steps=2"))
    assert len(steps) == 2
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["state_dict"]["model.head.memory.updates"].sum() > 0


def test_memory_moves_once_per_optimizer_step(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"observe": 0, "step": 0}
    for name in counts:
        original = getattr(PrototypeMemory, name)

        def counted(self, *args, name=name, original=original):  # type: ignore[no-untyped-def]
            counts[name] += 1
            return original(self, *args)

        monkeypatch.setattr(PrototypeMemory, name, counted)
    run_training(configure("train", *TINY, "trainer.max_steps=2", "trainer.accumulate_grad_batches=3"))
    assert counts == {"observe": 6, "step": 2}


def test_parametric_twin_trains_without_a_memory(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    overrides = [o for o in TINY if "num_prototypes" not in o]
    run_training(configure("train", *overrides, "head=parametric", "trainer.max_steps=2"))
    assert not any(column.startswith("prototypes/") for column in rows(tmp_path / "run")[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(precision: str, configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_training(configure("train", *TINY, f"trainer.precision={precision}", "trainer.max_steps=2"))
    losses = [float(row["train/loss"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert all(0 < loss < 10 for loss in losses)


def test_balanced_class_weights_come_from_the_training_masks(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1", "loss.ce.class_weights=balanced"))
    weights = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]["losses.ce.class_weights"]
    road, pole = 3, 2
    assert weights[pole] > 2 * weights[road]


def test_auxiliary_head_trains(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    auxiliary = "auxiliary={_target_: protoseg.models.decoders.AuxiliaryHead, width: 8}"
    term = "+loss.auxiliary={_target_: protoseg.losses.AuxiliaryCrossEntropy, weight: 0.4, class_weights: null}"
    run_training(configure("train", *TINY, auxiliary, term, "trainer.max_steps=2"))
    values = [float(row["train/auxiliary"]) for row in rows(tmp_path / "run") if row["train/auxiliary"]]
    assert len(values) == 2
    assert min(values) > 0


def test_short_trials_validate_too(configure: Callable[..., DictConfig]) -> None:
    assert validation_interval(configure("train", "trainer.max_steps=7")) == 7
    assert validation_interval(configure("train", "trainer.max_steps=1000")) == 250


def test_the_last_step_is_validated(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=5", "trainer.val_check_interval=3"))
    assert [row["step"] for row in rows(tmp_path / "run") if row["val/mIoU"]] == ["2", "4"]


def test_model_and_data_must_agree(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", *TINY)
    module = build_module(cfg, build_datamodule(cfg).label_space)
    space = build_datamodule(configure("train", "data=cityscapes")).label_space
    with pytest.raises(ProtosegError, match="11 classes"):
        type(module)(module.model, space, {}, None, None)  # type: ignore[arg-type]
    assert isinstance(module.configure_callbacks()[0], PrototypeMemoryCallback)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.val_check_interval=0.25", "number of batches"),
        ("trainer.precision=half", r"trainer\.precision: .*half"),
        ("+head.bogus=1", "bogus"),
        ("+loss.foo.weight=1", r"loss\.foo"),
        ("loss.ce=null", None),
    ],
)
def test_wrong_values_are_one_clear_error(
    override: str, message: str | None, configure: Callable[..., DictConfig]
) -> None:
    cfg = configure("train", *TINY, "trainer.max_steps=1", override)
    if message is None:  # a term set to null is left out, on purpose
        run_training(cfg)
        return
    with pytest.raises(ProtosegError, match=message):
        run_training(cfg)


def test_validation_never_falls_between_two_optimizer_steps(configure: Callable[..., DictConfig]) -> None:
    cfg = configure("train", "trainer.accumulate_grad_batches=4", "trainer.val_check_interval=10")
    assert validation_interval(cfg) == 8
    assert validation_interval(configure("train", "trainer.accumulate_grad_batches=4", "trainer.max_steps=1")) == 4


def test_gradient_clipping(configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.AdamW.step

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return original(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run_training(configure("train", *TINY, "trainer.gradient_clip_val=0.01", "trainer.max_steps=2"))
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


@pytest.mark.slow
def test_evaluation_of_moved_data_and_of_a_data_set_of_ones_own(
    configure: Callable[..., DictConfig], few_streets: Path, tmp_path: Path
) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    data = checkpoint["protoseg"]["config"]["data"]
    data["root"] = "/nowhere"
    torch.save(checkpoint, path)
    common = (f"ckpt_path={path}", "num_workers=0", "save=[]")
    with pytest.raises(ProtosegError, match=r"/nowhere.*evaluate\.py: root=FOLDER"):
        run_evaluation(configure("evaluate", *common, output=tmp_path / "a"))
    assert run_evaluation(configure("evaluate", *common, f"root={few_streets}", output=tmp_path / "b")) is not None

    data["dataset"]["_target_"] = "my_package.MyData"
    torch.save(checkpoint, path)
    with pytest.raises(ProtosegError, match="data=NAME"):
        run_evaluation(configure("evaluate", *common, output=tmp_path / "c"))
    assert run_evaluation(configure("evaluate", *common, "data=streets", output=tmp_path / "d")) is not None


def test_evaluation_of_a_folder_that_was_moved(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Its masks are read by the classes.yaml that lies beside them, not by that of the folder of the training."""
    colors = {"left": [200, 0, 0], "right": [0, 200, 0]}
    for name, swapped in (("old", False), ("new", True)):
        palette = dict(zip(colors, [*colors.values()][:: -1 if swapped else 1], strict=True))
        mask = np.zeros((64, 64, 3), np.uint8)
        mask[:, :32], mask[:, 32:] = palette.values()
        for kind, picture in (("images", np.full((64, 64, 3), 90, np.uint8)), ("masks", mask)):
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(picture).save(tmp_path / name / kind / f"{i}.png")
        (tmp_path / name / "classes.yaml").write_text(f"classes: {palette}".replace("'", ""))
    run_training(configure("train", *TINY, "trainer.max_steps=1", "data=folder", f"data.root={tmp_path}/old"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    scores = []
    for folder in ("old", "new"):
        out = tmp_path / f"out_{folder}"
        words = (f"ckpt_path={last}", "num_workers=0", "save=[]", f"root={tmp_path}/{folder}")
        scores.append(run_evaluation(configure("evaluate", *words, output=out)))
    assert scores[0] == scores[1]
    (tmp_path / "old").rename(tmp_path / "older")
    moved = open_file(last).datamodule(str(tmp_path / "older"), num_workers=0)
    assert moved.label_space.classes == ("left", "right")
