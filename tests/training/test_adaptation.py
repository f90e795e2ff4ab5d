"""Domain adaptation through the command line: what it logs, keeps, resumes and refuses."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from protoseg.checkpoint import read_checkpoint
from protoseg.functional.resize import upsample_logits
from protoseg.run.build import build_datamodule, build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.run.train import run_training
from protoseg.training import AdaptationModule, adaptation
from protoseg.types import IGNORE_INDEX, Batch, ProtosegError, SegOutput
from tests.conftest import TINY
from tests.training.test_resume import assert_resumes

ADAPT = tuple(x for x in TINY if not x.startswith("head."))
DAFORMER = ("experiment=small_daformer", *ADAPT)
# A random teacher is never sure; the paths of reliable pixels must run all the same.
SURE = ("method.threshold=0.1",)
PGPC = ("experiment=small_pgpc", *ADAPT, "contrast.reliable=0.1")
HRDA = ("segmentor=hrda", "segmentor.detail_size=64", "segmentor.attention.width=16", "data.crop_size=[128,128]")
NO_CE = (
    "loss=[parametric,dice]", "~loss.ce", "contrast=none",
    "method.terms.mixed.class_weights=null", "method.terms.mixed.all_pixels=false",
)  # fmt: skip
Configure = Callable[..., DictConfig]


def columns(run: Path) -> set[str]:
    with open(run / "logs" / "metrics.csv") as file:
        return {key for row in csv.DictReader(file) for key, value in row.items() if value}


@pytest.mark.parametrize("head", ["parametric", pytest.param("prototype", marks=pytest.mark.slow)])
def test_a_run_logs_and_writes_what_it_says(head: str, configure: Configure, tmp_path: Path) -> None:
    drawn = (x for x in PGPC if x != "callbacks.dashboard=null")
    run_training(configure("train", *drawn, *SURE, f"head={head}", "data.validate_source=true"))
    run = tmp_path / "run"
    assert {
        "train/ce", "train/mixed", "train/feature_distance", "train/contrast", "train/quality", "train/reliable/Road",
        "contrast/reliable/Road", "contrast/reliable_queue/Road", "contrast/anchors", "prototypes/moved",
        "val/mIoU", "val/teacher_mIoU", "val/teacher_IoU/Car", "val/source_mIoU", "val/pseudo_label_accuracy",
        "val/reliable", "val/reliable/Car",
    } <= columns(run)  # fmt: skip
    for name in ("curves.png", "panels/adaptation_000003.png", "panels/step_000006.png", "panels/occupancy_000006.png"):
        assert (run / name).stat().st_size > 0
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["teacher.n_averaged"] == 7
    prototypes = "model.head.memory.updates" if head == "prototype" else "terms.contrast.memory.updates"
    assert state[prototypes].sum() > 0
    assert state["terms.contrast.reliable_queue.fill"].sum() > 0


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("method=mic", "method.terms.masked.block_size=16"), marks=pytest.mark.slow),
        # Patches smaller than the detail: BatchNorm of a wholly masked crop has no variance.
        pytest.param(
            (*HRDA, "method=mic", "method.terms.masked.block_size=16",
             "+loss.detail._target_=protoseg.losses.DetailCrossEntropy",
             "+method.terms.detail_of_mixed._target_=protoseg.losses.MixedDetailCrossEntropy"),
            marks=pytest.mark.slow,
        ),
        pytest.param((*HRDA, "head=prototype"), marks=pytest.mark.slow),
        pytest.param(("trainer.precision=bf16-mixed", "head=prototype"), marks=pytest.mark.slow),
        pytest.param(("contrast=u2pl",), marks=pytest.mark.slow),
        pytest.param(("contrast=sepico_proto",), marks=pytest.mark.slow),
        pytest.param(("contrast=cycle_association",), marks=pytest.mark.slow),
        pytest.param(("contrast=pixel_contrast",), marks=pytest.mark.slow),
        pytest.param(("contrast=pixel_to_pixel", "contrast.size=[8,8]"), marks=pytest.mark.slow),
        pytest.param(("head=linear",), marks=pytest.mark.slow),
    ],
    ids=lambda o: "+".join(x.split("=")[1] for x in o[:1] + o[-1:]),
)  # fmt: skip
def test_every_method_trains_and_resumes(
    overrides: tuple[str, ...], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = DAFORMER if overrides[0].startswith("contrast=") else PGPC
    settings = (*base, *SURE, *overrides, "trainer.max_steps=4", "trainer.val_check_interval=2")
    assert_resumes(configure, tmp_path, monkeypatch, settings, 2, "on_validation_end")


@pytest.mark.slow
def test_student_and_teacher_are_judged_apart(configure: Configure, few_streets: Path, tmp_path: Path) -> None:
    few = (f"data.source.root={few_streets}", f"data.target.root={few_streets}")
    once = (*few, "trainer.limit_val_batches=1.0", "trainer.max_steps=3", "trainer.val_check_interval=3")
    run_training(configure("train", *PGPC, *once, "optimizer.lr=0.01"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with open(tmp_path / "run" / "logs" / "metrics.csv") as file:
        last = [row for row in csv.DictReader(file) if row["val/mIoU"]][-1]
    for network, key in (("student", "val/mIoU"), ("teacher", "val/teacher_mIoU")):
        cfg = configure(
            "evaluate", f"ckpt_path={path}", f"network={network}", "num_workers=0", "save=[]", output=tmp_path / network
        )
        assert run_evaluation(cfg) == pytest.approx(float(last[key]), abs=1e-6)
    assert last["val/mIoU"] != last["val/teacher_mIoU"]
    with pytest.raises(ProtosegError, match="student, teacher"):
        run_evaluation(configure("evaluate", f"ckpt_path={path}", "network=both"))


def test_a_supervised_checkpoint_has_no_teacher(configure: Configure, tmp_path: Path) -> None:
    run_training(configure("train", *TINY, "trainer.max_steps=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ProtosegError, match="got one without"):
        run_evaluation(configure("evaluate", f"ckpt_path={path}", "network=teacher", output=tmp_path / "e"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "hook", "extra"),
    [
        (1, "on_train_batch_start", ()),
        (3, "on_validation_end", ()),
        (2, "on_train_batch_start", ("trainer.accumulate_grad_batches=2", "trainer.max_steps=4")),
    ],
)
def test_stopped_and_resumed_is_never_stopped(
    step: int, hook: str, extra: tuple[str, ...], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*PGPC, *SURE, "data.num_workers=1", "decoder.dropout=0.2", *extra)
    assert_resumes(configure, tmp_path, monkeypatch, settings, step, hook)
    state = read_checkpoint(tmp_path / "resumed" / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["teacher.n_averaged"] == (5 if extra else 7)  # once per optimizer step
    assert {
        "terms.contrast.reliable_queue.features",
        "losses.feature_distance.reference.model.conv_stem.weight",
    } <= set(state)


@pytest.mark.parametrize(
    ("contrast", "accumulate", "precision"),
    [
        pytest.param("none", 1, "64-true", marks=pytest.mark.slow),
        pytest.param("pgpc", 2, "64-true", marks=pytest.mark.slow),
        ("pgpc", 1, "64-true"),
        pytest.param("sepico_proto", 1, "64-true", marks=pytest.mark.slow),
        pytest.param("pgpc", 1, "bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_separate_backwards_give_the_same_gradients(
    contrast: str, accumulate: int, precision: str, configure: Configure, tmp_path: Path
) -> None:
    states = []
    for separate in (False, True):
        output = tmp_path / str(separate)
        settings = (*DAFORMER, *SURE, f"contrast={contrast}")
        cfg = configure(
            "train", *settings, f"method.separate_backward={separate}", f"trainer.accumulate_grad_batches={accumulate}",
            "trainer.max_steps=2", f"trainer.precision={precision}", "trainer.val_check_interval=4",
            output=output,
        )  # fmt: skip
        run_training(cfg)
        states.append(read_checkpoint(output / "checkpoints" / "last.ckpt")["state_dict"])
    for name, value in states[0].items():
        if value.is_floating_point():
            atol = 1e-7 if precision == "64-true" else 2e-3  # sums of bf16 gradients, in another order
            torch.testing.assert_close(states[1][name], value, atol=atol, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_source_only_never_looks_at_the_target(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptationModule, "ask_teacher", None)
    run_training(configure("train", "experiment=small_source_only", *ADAPT, "trainer.max_steps=2"))


@pytest.mark.parametrize(
    ("words", "moving"),
    [
        (("experiment=small_dacs",), [False, True]),
        (("experiment=small_daformer", "method=mic"), [False, True]),  # by no masked ones either
        (("experiment=small_source_only",), [True]),
    ],
)
def test_running_statistics_are_those_of_mixed_images(
    words: tuple[str, ...], moving: list[bool], configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[torch.Tensor]] = []
    moved = []
    see = AdaptationModule.see

    def means(self: AdaptationModule) -> list[torch.Tensor]:
        return [m.running_mean.clone() for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # type: ignore[union-attr]

    def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
        of_each = {not torch.equal(*pair) for pair in zip(before, after, strict=True)}
        assert len(of_each) == 1
        return of_each.pop()

    def watch(self: AdaptationModule, *args: object) -> object:
        before = means(self)
        assert not kept or not changed(kept.pop(), before)
        seen = see(self, *args)  # type: ignore[arg-type]
        kept.append(means(self))
        moved.append(changed(before, kept[0]))
        return seen

    monkeypatch.setattr(AdaptationModule, "see", watch)
    run_training(configure("train", *words, *ADAPT, "trainer.max_steps=2"))
    assert moved == 2 * moving


def test_optimizer_gets_the_projection_and_neither_teacher_nor_reference(configure: Configure) -> None:
    module = module_of(configure)
    groups = {id(p): g["name"] for g in module.make_optimizer(module).param_groups for p in g["params"]}
    named = dict(module.named_parameters())
    held = {name for name, p in named.items() if id(p) in groups}
    assert {name for name in held if name.startswith("model.")} == {n for n in named if n.startswith("model.")}
    assert any(name.startswith("terms.contrast.projection") for name in held)
    assert not any("teacher" in name or "reference" in name for name in held)
    assert all(("encoder" in groups[id(p)]) == n.startswith("model.encoder.") for n, p in named.items() if n in held)


def test_the_memory_is_the_heads_or_the_terms(configure: Configure) -> None:
    module = module_of(configure)
    assert module.memories["prototypes"] is module.terms["contrast"].memory
    module = module_of(configure, "head=prototype")
    assert module.memories["prototypes"] is module.model.head.memory  # type: ignore[union-attr]
    assert module.terms["contrast"].memory is None
    assert sum("memory.prototypes" in name for name in module.state_dict()) == 2  # student and teacher


def module_of(configure: Configure, *overrides: str) -> AdaptationModule:
    cfg = configure("train", *(DAFORMER if "contrast=none" in overrides else PGPC), *overrides)
    module = build_module(cfg, build_datamodule(cfg).label_space)
    assert isinstance(module, AdaptationModule)
    return module


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.threshold=0", "contrast=none"), "threshold"),
        (("method.ignore_top=-1",), "ignore_top"),
        (("method.unweighted=true", f"loss.ce.class_weights={[0, *[1] * 10]}"), r"above 0, not .*, got \[0.0, 1.0"),
        (("method.unweighted=true", "loss.ce.class_weights=null"), r"not all alike, got \[1.0, 1.0"),
        ((*NO_CE, "method.unweighted=true"), "cross-entropy on the source, .*got dice; set"),
        (("method.alpha=1",), "alpha"),
        (("method.source_terms.feature_distance.classes=[dragon]",), "dragon"),
        (("+method.subsets.few=[Car,dragon]",), "dragon"),
        (("+method.terms.ce=${method.terms.mixed}",), "two of ce"),
        (("method=source_only",), "contrast"),
        (("method=supervised",), "contrast"),
        (("method.separate_backward=true", "auxiliary={_target_:protoseg.models.decoders.AuxiliaryHead}"), "auxiliary"),
    ],
)
def test_wrong_settings(overrides: tuple[str, ...], message: str, configure: Configure) -> None:
    with pytest.raises(ProtosegError, match=message):
        module_of(configure, *overrides)


def test_subsets_are_means_over_their_classes(configure: Configure, tmp_path: Path) -> None:
    run_training(configure("train", *PGPC, "trainer.max_steps=1", "+method.subsets.two=[Sky,Road]"))
    with open(tmp_path / "run" / "logs" / "metrics.csv") as file:
        row = [row for row in csv.DictReader(file) if row["val/mIoU"]][-1]
    for key, iou in (("val/mIoU_two", "val/IoU"), ("val/teacher_mIoU_two", "val/teacher_IoU")):
        assert float(row[key]) == pytest.approx((float(row[f"{iou}/Sky"]) + float(row[f"{iou}/Road"])) / 2, abs=1e-6)


def test_a_teacher_of_one_class_is_told(configure: Configure) -> None:
    module = module_of(configure)
    module._trainer = type("T", (), {"sanity_checking": False, "global_step": 7})()
    counts = torch.zeros(11, dtype=torch.int64)
    counts[3] = 10
    with pytest.warns(UserWarning, match=r"100\.0% of the target pixels 'Road' at step 7"):
        module._warn_of_one_class(counts, "target pixels")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module._warn_of_one_class(torch.ones(11, dtype=torch.int64), "target pixels")


def test_it_is_told_while_training(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "ONE_CLASS_SHARE", 0.05)
    with pytest.warns(UserWarning, match="of the target pixels"):
        run_training(configure("train", *PGPC, "trainer.max_steps=2"))


@pytest.mark.parametrize("overrides", [("data=streets_day_to_dusk",), ("method=dacs",)])
def test_data_and_method_must_suit_each_other(overrides: tuple[str, ...], configure: Configure) -> None:
    with pytest.raises(ProtosegError, match="data and method"):
        run_training(configure("train", *TINY, *overrides))


def test_statistics_are_logged_when_they_are_computed(configure: Configure, tmp_path: Path) -> None:
    """Lightning writes every n-th step: what an earlier step computed would be a stale number."""
    run_training(configure("train", *PGPC, *SURE, "trainer.log_every_n_steps=2", "trainer.val_check_interval=6"))
    with open(tmp_path / "run" / "logs" / "metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["contrast/anchors"]]
    assert steps == [1, 3, 5]


def test_pixel_weights_and_quality(configure: Configure) -> None:
    module = module_of(configure, "method.ignore_top=1", "method.ignore_bottom=2")
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    module.threshold = 0.12
    pseudo = module.ask_teacher(image)
    assert pseudo.label.shape == pseudo.confidence.shape == (2, 64, 64)
    assert pseudo.quality == pytest.approx((pseudo.confidence >= 0.12).float().mean().item())
    assert 0 < pseudo.quality < 1
    assert not pseudo.teacher.logits.requires_grad
    assert (pseudo.label[:, 1:62] < 11).all()
    assert (pseudo.label[:, [0, 62, 63]] == -1).all()
    module = module_of(configure, "method.ignore_top=30", "method.ignore_bottom=34")
    with pytest.raises(ProtosegError, match=r"got 64 rows of which 30 \+ 34 do not count; set both to 0"):
        module.ask_teacher(image)


def test_class_weights_are_divided_out_of_pseudo_labels(configure: Configure) -> None:
    """Also in the metrics of pseudo-labels; the teacher itself is judged as it predicts."""
    module = module_of(configure, "method.unweighted=true", f"loss.ce.class_weights={[*range(1, 12)]}")
    image, size = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]] * 2)
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 11, 64 // module.model.stride, 64 // module.model.stride)
    module.teacher.module.forward = lambda _: SegOutput(logits, logits)
    weighted = upsample_logits(logits, (64, 64), module.model.stride).softmax(1)
    parts = weighted / torch.arange(1.0, 12).view(-1, 1, 1)
    confidence, label = (parts / parts.sum(1, keepdim=True)).max(1)
    said = module.ask_teacher(image)
    torch.testing.assert_close(said.confidence, confidence)
    assert torch.equal(said.label, label)
    assert len(label.unique()) > 5
    assert 0.1 < (label != weighted.argmax(1)).float().mean() < 0.9
    torch.testing.assert_close(said.teacher.logits, logits - torch.arange(1.0, 12).log().view(-1, 1, 1))

    module.threshold = float(confidence.median()) + 1e-5  # which no pixel has
    sure = label.where(confidence >= module.threshold, IGNORE_INDEX)
    module.validation_step(Batch(image, sure, size, name=["a", "b"]), 0)
    assert module.reliable_metrics.compute()["pixel_accuracy"] == 1  # of all that are labelled
    assert int(module.reliable_metrics.compute()["confusion"].sum()) == int((sure != IGNORE_INDEX).sum())
    assert module.teacher_metrics.compute()["pixel_accuracy"] < 1
