"""The contracts of the training room: terms see one record, state moves once, moves can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from protoseg.data import CAMVID
from protoseg.losses import Step, Target, Term
from protoseg.nn import PrototypeMemory
from protoseg.run.build import build_module
from protoseg.run.train import run_training
from protoseg.training.moves import ClassMix, Mixture
from protoseg.types import Batch, ProtosegError, SegOutput
from tests.conftest import TINY

Configure = Callable[..., DictConfig]
SOFTMAX = (*(o for o in TINY if not o.startswith("head.")), "head=parametric")
DACS = (*SOFTMAX, "data=streets_day_to_dusk", "method=dacs")


def step_of(module: Any, adapts: bool = False) -> dict[str, Any]:
    """One training step without a trainer."""
    torch.manual_seed(0)
    module._trainer = SimpleNamespace(
        log_every_n_steps=10**9, accumulate_grad_batches=1, global_step=1, max_steps=10, precision_plugin=None
    )
    module.log = module.log_dict = lambda *args, **kwargs: None
    label = torch.randint(0, 11, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(image, label, torch.full((2, 2), 64), ["a", "b"])
    return module.train().training_step((batch, batch) if adapts else batch, 0)


@pytest.mark.parametrize("preset", ["pixel_to_pixel", "sepico_proto", "pixel_contrast"])
@pytest.mark.parametrize("head", ["linear", "prototype"])
def test_contrasts_work_in_supervised_training(preset: str, head: str, configure: Configure) -> None:
    base = TINY if head == "prototype" else (*SOFTMAX[:-1], f"head={head}")
    size = ("contrast.size=[8,8]",) if preset == "pixel_to_pixel" else ()
    module = build_module(configure("train", *base, f"contrast={preset}", *size), CAMVID)
    alone = build_module(configure("train", *base), CAMVID)
    for each in (module, alone):
        step_of(each)["loss"].backward()
        each.after_optimizer_step()  # means are placed at the end of the first step
    loss, plain = step_of(module)["loss"], step_of(alone)["loss"]
    assert torch.isfinite(loss)
    assert loss > plain
    term: Any = module.terms["contrast"]
    term.weight = 1e6
    module.zero_grad()
    step_of(module)["loss"].backward()
    norms = [p.grad.norm() for p in module.model.encoder.parameters() if p.grad is not None]
    assert torch.stack(norms).sum() > 1e3  # by the contrast alone
    if preset == "pixel_contrast":
        queues = {name: value.sum() for name, value in module.state_dict().items() if "queue.features" in name}
        assert [*queues] == ["terms.contrast.queue.features", "terms.contrast.region_queue.features"]
        assert all(value != 0 for value in queues.values())


EXTRA = {
    "dice": ("loss=[HEAD,dice]",),
    "lovasz": ("loss=[HEAD,lovasz_softmax]",),
    "weights": (
        *("loss.ce.label_smoothing=0.1", "loss.ce.focal_gamma=2", "loss.ce.recall=true", "loss.ce.boundary=[5,3]"),
        "loss.ce.ohem_threshold=0.7",
    ),
}


@pytest.mark.parametrize(
    ("base", "head", "extra"),
    [
        *((TINY, "prototype", extra) for extra in EXTRA),
        (SOFTMAX, "parametric", "weights"),
        *((DACS, "parametric", extra) for extra in ("dice", "weights")),
    ],
)
def test_losses_train_beside_those_of_the_head(
    base: tuple[str, ...], head: str, extra: str, configure: Configure
) -> None:
    words = [word.replace("HEAD", head) for word in EXTRA[extra]]
    module, alone = (build_module(configure("train", *base, *more), CAMVID) for more in (words, []))
    step = step_of(module, adapts=base is DACS)["loss"]
    assert torch.isfinite(step)
    assert step != step_of(alone, adapts=base is DACS)["loss"]
    assert set(module.losses) == set(alone.losses) | ({extra} & {"dice", "lovasz"})
    step.backward()
    module.after_optimizer_step()


@pytest.mark.parametrize(("decoder", "head"), [("unet", "parametric"), ("unetplusplus", "prototype")])
def test_decoders_of_stride_2_train(decoder: str, head: str, configure: Configure) -> None:
    base = [o for o in (SOFTMAX if head == "parametric" else TINY) if not o.startswith("decoder.")]
    module = build_module(configure("train", *base, f"decoder={decoder}", "decoder.widths=[16,16,8,8]"), CAMVID)
    assert module.model.stride == 2
    step_of(module)["loss"].backward()
    assert all(p.grad is not None for p in module.model.decoder.parameters())
    module.after_optimizer_step()


@pytest.mark.parametrize("preset", ["pgpc", "u2pl"])
def test_a_term_without_its_images_is_refused_before_training(preset: str, configure: Configure) -> None:
    settings = (f"contrast={preset}",)
    with pytest.raises(ProtosegError, match=r"contrast: \w+ needs mixed and target images, which SupervisedModule"):
        build_module(configure("train", *TINY, *settings), CAMVID)
    with pytest.raises(ProtosegError, match="a method with terms to add it to"):
        build_module(
            configure("train", *SOFTMAX, "data=streets_day_to_dusk", "method=source_only", "contrast=pixel_contrast"),
            CAMVID,
        )


def test_weights_are_read_where_they_are_used(configure: Configure) -> None:
    module = build_module(configure("train", *TINY), CAMVID)
    before = step_of(module)["loss"].detach()
    for term in module.losses.values():
        term.weight *= 3
    torch.testing.assert_close(step_of(module)["loss"].detach(), 3 * before)


class Prepared(Term):
    """Knows what it was prepared with."""

    def prepare(self, model: Any, label_space: Any) -> None:
        self.seen_at_start = (model, label_space)

    def forward(self, step: Step) -> torch.Tensor:
        assert self.seen_at_start[0] is step.model
        return step.labelled.output.logits.sum() * 0


def test_terms_of_the_loss_are_prepared(configure: Configure) -> None:
    config = configure("train", *TINY, f"+loss.mine._target_={__name__}.Prepared")
    module = build_module(config, CAMVID)
    assert module.losses["mine"].seen_at_start == (module.model, CAMVID)
    step_of(module)


class OwnMemory(Prepared):
    """Keeps prototypes of its own beside the head's."""

    def prepare(self, model: Any, label_space: Any) -> None:
        super().prepare(model, label_space)
        self.memory = PrototypeMemory(label_space.num_classes, 2, 3)

    def forward(self, step: Step) -> torch.Tensor:
        from protoseg.nn.prototype_memory import Observation

        assert self.memory is not None
        label = torch.tensor([0, 1, 2, 3])
        embeddings = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
        own = self.memory.similarity(embeddings).own(label)
        member = self.memory.balance(own, label).member
        self.observations = [Observation(self.memory, embeddings, own, label, label >= 0, member)]
        return step.labelled.output.logits.sum() * 0


def test_two_memories_do_not_mix(configure: Configure) -> None:
    module = build_module(configure("train", *TINY, f"+method.terms.own._target_={__name__}.OwnMemory"), CAMVID)
    step_of(module)["loss"].backward()
    module.after_optimizer_step()
    own, of_head = module.terms["own"].memory, module.model.head.memory
    assert list(module.memories) == ["prototypes", "own/prototypes"]
    assert own.occupancy.sum() == 4
    assert own.updates.sum(1).tolist() == [1, 1, 1, 1] + [0] * 7
    assert of_head is not None
    assert of_head.occupancy.sum() > 100


def test_nothing_moves_after_an_overflow(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_lightning as pl

    config = configure("train", *TINY, "data=streets_day_to_dusk", "method=dacs", "contrast=sepico_proto")
    module: Any = build_module(config, CAMVID)
    before = {name: value.clone() for name, value in module.state_dict().items() if "memory" in name or "means" in name}
    teacher = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    scales = iter([2.0, 1.0])  # the scaler halves its factor at an overflow

    def steps(self: Any, *args: Any, **kwargs: Any) -> None:
        step_of(module, adapts=True)["loss"].backward()
        module._trainer.precision_plugin = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: next(scales)))

    monkeypatch.setattr(pl.LightningModule, "optimizer_step", steps)
    module._trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: next(scales)))
    )
    module.optimizer_step()
    for name, value in {**before, **{f"teacher.{name}": value for name, value in teacher.items()}}.items():
        assert torch.equal(module.state_dict()[name], value), name
    for memory in module.memories.values():
        assert memory.pending_counts.sum() == 0
    assert module._waiting == []


def test_target_pixels_weigh_pgpcs_share_of_their_quality() -> None:
    """Pasted pixels 1, the others 0.8 times the share of sure pixels."""
    label, image = torch.tensor([[[0, 0, 1, 1]]]), torch.zeros(1, 3, 1, 4, dtype=torch.uint8)
    said = Target(image, torch.ones_like(label), torch.ones(1, 1, 4), torch.tensor(0.5), SegOutput(image, image))
    batch = Batch(image, label, torch.tensor([[1, 4]]), [""])
    mixture = ClassMix(jitter=0, blur=False, target_weight=0.8)(batch, said, 2, 0.968)
    torch.testing.assert_close(mixture.weight, torch.where(mixture.pasted, 1.0, 0.4))


class PasteNothing(ClassMix):
    """A mix of one's own."""

    def __call__(self, labelled: Batch, target: Target, num_classes: int, threshold: float) -> Mixture:
        mixture = super().__call__(labelled, target, num_classes, threshold)
        nothing = torch.zeros_like(mixture.pasted)
        return mixture._replace(image=target.image, label=target.label, pasted=nothing)


def test_a_mix_of_ones_own(configure: Configure, tmp_path: Path) -> None:
    config = configure("train", *DACS, f"method.mix._target_={__name__}.PasteNothing", "trainer.max_steps=1")
    module: Any = build_module(config, CAMVID)
    assert isinstance(module.mix, PasteNothing)
    picture = step_of(module, adapts=True)["picture"]
    assert torch.equal(picture["image"], picture["mixed"])
    run_training(config)


def test_masked_images_have_the_mixed_ones_colours(configure: Configure) -> None:
    module: Any = build_module(
        configure("train", *DACS[:-1], "method=mic", "method.mix.jitter=0.1", "method.mix.blur=false"), CAMVID
    )
    assert module.terms["masked"].colours == {"jitter": 0.1, "jitter_probability": 0.8, "blur": False, "kornia": False}
