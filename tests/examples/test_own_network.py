"""A network of one's own: with our head and as it is, saved, loaded and opened by the commands; what is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import protoseg
from examples.own_network.own_network import as_it_is, with_our_head
from protoseg.models.own import NetworkEncoder
from protoseg.run.build import build_module
from protoseg.run.evaluate import run_evaluation
from protoseg.types import Batch, ProtosegError

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_network"
SMP = ["segmentation_models_pytorch"]
CLASSES = ["left", "right", "none"]
PHOTO = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)


class Tiny(nn.Module):
    """A map at stride 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, channels, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


def tiny(arguments: dict[str, int] | None, classes: list[str] = CLASSES) -> protoseg.Model:
    torch.manual_seed(0)
    return protoseg.Model.from_network(Tiny(len(classes)), classes, arguments, stride=4).to("cpu")


def images_and_labels() -> tuple[Tensor, Tensor]:
    """Dark at the left, bright at the right."""
    image = torch.randint(0, 100, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    image[..., 32:] += 100
    label[..., 32:] = 1
    return image, label


def test_a_network_with_our_head_learns_and_is_opened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = with_our_head(CLASSES, "head.num_prototypes=2", "optimizer.encoder_lr=2e-3")
    (image, label), optimizer = images_and_labels(), torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(6):
        optimizer.zero_grad()
        network.loss(image, label).backward()
        optimizer.step()
        network.after_optimizer_step()
    network.save(tmp_path / "own.ckpt")
    with pytest.raises(ProtosegError, match=r"trust=\[segmentation_models_pytorch"):
        protoseg.load(tmp_path / "own.ckpt")
    model = protoseg.load(tmp_path / "own.ckpt", "cpu", trust=SMP)
    assert repr(model) == "Model: Unet + PrototypeHead, on cpu\n3 classes: left, right, none"
    model.network.train()  # its BatchNorm has seen few batches
    assert protoseg.evaluate(model, [(image[0], label[0])])["pixel_accuracy"] > 0.9


def test_a_network_as_it_is(tmp_path: Path) -> None:
    model = as_it_is(CLASSES).to("cpu")
    want = model.predict(PHOTO, probabilities=True)
    model.save_pretrained(tmp_path)
    got = protoseg.load(tmp_path, "cpu", trust=SMP).predict(PHOTO)
    assert np.array_equal(got.labels, want.labels)
    assert want.probabilities.shape == (3, 50, 70)
    assert np.array_equal(want.probabilities.argmax(0), want.labels)
    np.testing.assert_allclose(want.probabilities.max(0), got.confidence, atol=1e-4)  # two orders of the same sums


def test_commands_open_it(tmp_path: Path, configure: Callable[..., DictConfig]) -> None:
    model, place = tiny({"channels": 3}), tmp_path / "photos"
    checkpoint = model.save_pretrained(tmp_path / "saved")
    place.mkdir()
    Image.fromarray(PHOTO).save(place / "a.png")
    mode = ["mode=predict", "save=[labels,probabilities]", "device=cpu", f"trust=[{Tiny.__module__}]"]
    run_evaluation(configure("evaluate", f"ckpt_path={checkpoint}", f"images={place}", *mode, output=tmp_path / "out"))
    want = model.predict(PHOTO, probabilities=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png")), want.labels)
    written = np.load(tmp_path / "out" / "probabilities" / "a.npy")
    assert written.dtype == np.float16
    np.testing.assert_allclose(written, want.probabilities, atol=1e-3)


def test_several_images(tmp_path: Path) -> None:
    model = tiny(None)
    want = model.predict(PHOTO).labels
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    batch = np.stack([PHOTO, PHOTO])
    for several in ([PHOTO, tmp_path / "b.png"], batch, torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())):
        assert [np.array_equal(each.labels, want) for each in model.predict(several)] == [True, True]


def test_scores_of_pairs(tmp_path: Path) -> None:
    """Half of the right class is called wrong: IoU by hand; ignored pixels count nowhere."""
    model = tiny(None)
    seen = model.predict(PHOTO).labels
    truth = seen.astype(np.int64)
    truth[:10], truth[40:] = -1, (truth[40:] + 1) % 3
    mask = np.where(truth < 0, 255, truth).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    right = (truth == seen)[10:].sum()
    for label in (truth, torch.from_numpy(truth), tmp_path / "mask.png"):
        scores = protoseg.evaluate(model, [(PHOTO, label), (PHOTO, label)])
        assert scores["pixel_accuracy"] == pytest.approx(right / (40 * 70))
        row = scores["classes"][0]
        union = ((truth == 0) | (seen == 0))[10:].sum()
        assert row["IoU"] == pytest.approx(((truth == 0) & (seen == 0))[10:].sum() / union)
    with pytest.raises(ProtosegError, match="of one shape"):
        protoseg.evaluate(model, [(PHOTO, truth[:5])])
    with pytest.raises(ProtosegError, match="expected ids 0 to 2"):
        protoseg.evaluate(model, [(PHOTO, truth + 5)])
    with pytest.raises(ProtosegError, match="expected class ids h w, whole numbers, got float64"):
        protoseg.evaluate(model, [(PHOTO, truth / 2)])


def beside() -> NetworkEncoder:
    return NetworkEncoder(Tiny(3), channels=3, stride=2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tiny({}), r"expected arguments=\{name: plain value\} that make the same network again, got \{\}"),
        (lambda: tiny({"channels": 4}), "2 of another shape: body"),
        (lambda: tiny(None).save_pretrained("unused"), r"expected a network made with Model.from_network\(…, arg"),
        (lambda: protoseg.build(["a", "a"]), "a list of different names"),
        (lambda: protoseg.build(CLASSES, encoder="resnet50", network=beside()), "no encoder or decoder beside"),
        (lambda: protoseg.build(CLASSES, "encoder.freeze=true", network=beside()), "no encoder or decoder beside"),
        (lambda: protoseg.build("road"), "a list of different names"),
        (
            lambda: protoseg.Model.from_network(Tiny(3), CLASSES, stride=2).predict(PHOTO),
            r"Tiny: expected a map of \(1, 3, 32, 48\) .* got \(1, 3, 16, 24\); set",
        ),
    ],
)
def test_what_does_not_fit_is_told(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ProtosegError, match=match):
        make()


def test_the_yaml_makes_it(configure: Callable[..., DictConfig]) -> None:
    words = [f"hydra.searchpath=['file://{EXAMPLE}/conf']", "encoder=own_network", "decoder=none"]
    of_tiny = [f"encoder.network._target_={Tiny.__module__}.Tiny", "head.num_prototypes=2"]
    module = build_module(configure("train", *words, *of_tiny), protoseg.data.CAMVID)
    assert isinstance(module.model.encoder, NetworkEncoder)
    assert module(torch.zeros(1, 3, 50, 70)).logits.shape == (1, 11, 13, 18)


SMALL = ("encoder.name=test_resnet", "encoder.pretrained=false", "head.num_prototypes=2", "schedule.warmup_steps=0")


def test_prototypes_that_never_moved_are_told_once(tmp_path: Path) -> None:
    network, image = protoseg.build(CLASSES, *SMALL).eval(), images_and_labels()[0]
    with pytest.warns(UserWarning, match=r"never moved.*after_optimizer_step\(\)"):
        network(image)
    network.save(tmp_path / "own.ckpt")
    moved = protoseg.build(CLASSES, *SMALL)
    moved.loss(*images_and_labels())
    moved.after_optimizer_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(image)
        moved.eval()(image)
        protoseg.load(tmp_path / "own.ckpt", "cpu").predict(PHOTO)


def test_a_plain_lightning_run_is_loaded(tmp_path: Path) -> None:
    image, label = images_and_labels()
    network = protoseg.build(CLASSES, *SMALL)
    batches = DataLoader([Batch(image, label, torch.tensor([[64, 64]] * 2), ["a", "b"])] * 2, batch_size=None)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*never moved.*")  # the Trainer's own validation before the first step
        trainer.fit(network, batches, batches)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    got = protoseg.load(checkpoint, "cpu").predict(PHOTO).labels
    network.eval()
    want = network.predictor.predict(network.model, torch.from_numpy(PHOTO.transpose(2, 0, 1).copy())[None],
                                     torch.tensor([[50, 70]]))[0]  # fmt: skip
    assert np.array_equal(got, want)
