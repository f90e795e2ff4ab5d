"""Semi-supervised methods: what the student is shown of images without labels, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from protoseg.data import CAMVID
from protoseg.losses import Step, StrongViews, Target
from protoseg.models.segmentor import Segmentor
from protoseg.run.build import build_module
from protoseg.run.train import run_training
from protoseg.training import moves
from protoseg.training.moves import CutMix
from protoseg.types import Batch, SegOutput
from tests.conftest import TINY
from tests.training.test_contracts import step_of
from tests.training.test_resume import assert_resumes

Configure = Callable[..., DictConfig]
SEMI = (*(o for o in TINY if not o.startswith("head.")), "method.threshold=0.1")
METHODS = ("cutmix", "unimatch", "unimatch_v2")
CONTRASTS = ("pgpc", "u2pl", "pixel_contrast", "sepico_proto", "pixel_to_pixel")


def target(size: int = 16) -> Target:
    """Two images that a random teacher has labelled."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    label, confidence = torch.randint(0, 3, (2, size, size)), torch.rand(2, size, size)
    label[:, :2] = -1
    unused: Any = None
    return Target(image, label, confidence, torch.tensor(0.25), unused)


def test_cut_mix_pastes_a_rectangle_of_the_other_unlabelled_image() -> None:
    said, never = target(), Batch(*[None] * 4)  # type: ignore[arg-type]
    mixture = CutMix(jitter=0, blur=False, target_weight=0.8)(never, said, 3, 0.5)
    assert 0 < mixture.pasted.float().mean() < 1
    other = Target(*(each.roll(1, 0) for each in (said.image, said.label, said.confidence)), said.quality, None)  # type: ignore[arg-type]
    for here, where in ((other, mixture.pasted), (said, ~mixture.pasted)):
        pixels = where.unsqueeze(1).expand_as(said.image)
        assert torch.equal(mixture.image[pixels], here.image[pixels])
        assert torch.equal(mixture.label[where], here.label[where])
        sure = here.label.where(here.confidence >= 0.5, -1)
        assert torch.equal(mixture.reliable[where], sure[where])
    torch.testing.assert_close(mixture.weight, torch.full((2, 16, 16), 0.2))


class Student(nn.Module):
    """Six channels at stride 4, of which the first three, and the last three, add up to the class logits."""

    stride, num_classes = 4, 3
    perturbed = Segmentor.perturbed

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.encoder: Any = SimpleNamespace(frozen_maps=self.frozen_maps, from_frozen=lambda maps: maps)
        self.seen: list[list[Tensor]] = []

    def frozen_maps(self, image: Tensor) -> list[Tensor]:
        return [self.norm(F.avg_pool2d(image.float() / 255, 4).repeat(1, 2, 1, 1))]

    def segment(self, image: Tensor, encoder: Callable[[Tensor], list[Tensor]]) -> SegOutput:
        self.seen.append(maps := encoder(image))
        return SegOutput(logits=maps[0][:, :3] + maps[0][:, 3:], embeddings=maps[0])

    def forward(self, image: Tensor) -> SegOutput:
        return self.segment(image, self.frozen_maps)


def term(**options: Any) -> StrongViews:
    made = StrongViews(CutMix(jitter=0, blur=False), threshold=0.5, **options)
    made.prepare(None, SimpleNamespace(num_classes=3, parents=()))  # type: ignore[arg-type]
    return made


def test_strong_views_by_hand() -> None:
    unused: Any = None
    student, said = Student(), target()
    torch.manual_seed(3)
    value = term()(Step(student, unused, target=said))
    torch.manual_seed(3)
    views = [CutMix(jitter=0, blur=False)(unused, said, 3, 0.5) for _ in range(2)]
    assert not torch.equal(views[0].pasted, views[1].pasted)
    logits = student(torch.cat([view.image for view in views])).logits
    full = F.interpolate(logits, (16, 16), mode="bilinear")
    losses = F.cross_entropy(full, torch.cat([view.reliable for view in views]), ignore_index=-1, reduction="none")
    torch.testing.assert_close(value, losses.mean())  # over the pixels that have no loss too


def test_weak_views_lack_half_of_their_channels_and_count_as_much_as_the_strong_ones() -> None:
    unused: Any = None
    student, said = Student(), target()
    torch.manual_seed(3)
    value = term(weak=True)(Step(student, unused, target=said))
    maps = student.seen[-1][0]
    whole = student.frozen_maps(said.image)[0]
    factor = (maps / whole).mean((2, 3)).round()
    assert {*factor.flatten().tolist()} == {0.0, 2.0}
    torch.testing.assert_close(maps, whole * factor[:, :, None, None])
    torch.manual_seed(3)
    strong = term()(Step(student, unused, target=said))
    full = F.interpolate(maps[:, :3] + maps[:, 3:], (16, 16), mode="bilinear")
    sure = said.label.where(said.confidence >= 0.5, -1)
    weak = F.cross_entropy(full, sure, ignore_index=-1, reduction="none").mean()
    torch.testing.assert_close(value, (strong + weak) / 2)


def test_strong_views_lack_channels_in_turn() -> None:
    unused: Any = None
    student, said = Student(), target()
    found = set()
    for seed in range(10):
        torch.manual_seed(seed)
        term(in_turn=True)(Step(student, unused, target=said))
        torch.manual_seed(seed)
        views = [CutMix(jitter=0, blur=False)(unused, said, 3, 0.5) for _ in range(2)]
        whole = student.frozen_maps(torch.cat([view.image for view in views]))[0]
        first, second = (student.seen[-1][0] / whole).mean((2, 3)).round().view(2, 2, 6)
        assert torch.equal(first + second, torch.full((2, 6), 2.0))
        found |= {frozenset(image.tolist()) for image in first}
    assert {frozenset({1.0}), frozenset({0.0, 2.0})} <= found  # some images keep all channels
    assert frozenset({0.0, 1.0, 2.0}) not in found


@pytest.mark.parametrize("options", [{}, {"weak": True}, {"in_turn": True}])
def test_views_move_no_statistics_and_never_stop_the_device(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
            return func(*args, **(kwargs or {}))

    # Which kernels colours take is drawn on the host.
    monkeypatch.setattr(moves, "strong_transform", lambda image, **colours: image)
    unused: Any = None
    student, said = Student().train(), target()
    made = term(**options)
    with Stops():
        made(Step(student, unused, target=said)).backward()
    assert student.norm.weight.grad is not None
    assert torch.equal(student.norm.running_mean, torch.zeros(6))  # type: ignore[arg-type]


def test_images_are_mixed_where_a_term_is_on_them(configure: Configure) -> None:
    for contrast, seen in (("none", 1), ("pixel_contrast", 2)):
        module: Any = build_module(
            configure("train", "experiment=small_semi_unimatch", *SEMI, f"contrast={contrast}"), CAMVID
        )
        see, calls = module.see, []
        module.see = lambda *args, see=see, calls=calls: calls.append(1) or see(*args)
        step_of(module, adapts=True)
        assert len(calls) == seen


@pytest.mark.parametrize(
    ("method", "contrast"),
    [
        ("cutmix", "u2pl"),
        ("unimatch", "pgpc"),
        ("unimatch_v2", "pixel_contrast"),
        *(pytest.param(method, contrast, marks=pytest.mark.slow) for method, contrast in product(METHODS, CONTRASTS)),
    ],
)
def test_every_contrast_learns_beside_them(method: str, contrast: str, configure: Configure) -> None:
    size = ("contrast.size=[8,8]",) if contrast == "pixel_to_pixel" else ()
    words = ("experiment=small_semi_" + method, *SEMI, f"contrast={contrast}", *size)
    module: Any = build_module(configure("train", *words), CAMVID)
    for _ in range(2):  # prototypes are placed at the end of the first step
        loss = step_of(module, adapts=True)["loss"]
        loss.backward()
        module.after_optimizer_step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert (
        any(value.sum() for key, value in module.terms["contrast"].statistics.items()) or contrast == "pixel_to_pixel"
    )


@pytest.mark.parametrize("method", METHODS)
def test_recipes_keep_the_class_weights_out_of_pseudo_labels(method: str, configure: Configure) -> None:
    """A long training of CutMix with them in fell apart (docs/results.md)."""
    weights = f"loss.ce.class_weights={[*range(1, 12)]}"
    module: Any = build_module(configure("train", f"experiment=small_semi_{method}", *SEMI, weights), CAMVID)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    said, weighted = module.ask_teacher(image).teacher.logits, module.teacher(image).logits
    torch.testing.assert_close(weighted - said, torch.arange(1.0, 12).log().view(1, -1, 1, 1).expand_as(said))


def test_without_an_average_the_teacher_is_the_student(configure: Configure) -> None:
    module: Any = build_module(configure("train", "experiment=small_semi_unimatch", *SEMI), CAMVID)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.5)
    module.after_optimizer_step()
    for own, new in zip(module.teacher.module.parameters(), module.model.parameters(), strict=True):
        torch.testing.assert_close(own, new)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_is_never_stopped(
    method: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"experiment=small_semi_{method}", *SEMI, "trainer.max_steps=3", "trainer.val_check_interval=3")
    assert_resumes(configure, tmp_path, monkeypatch, settings, 1, "on_train_batch_start")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("segmentor=hrda", "segmentor.detail_size=32", "segmentor.attention.width=16"), ("head=prototype",)]
)
def test_they_train_other_networks(words: tuple[str, ...], configure: Configure) -> None:
    run_training(configure("train", "experiment=small_semi_unimatch", *SEMI, *words, "trainer.max_steps=2"))
