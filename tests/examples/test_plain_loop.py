"""protoseg in a loop of one's own: what it learns is opened as any other model, and its prototypes move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import protoseg
from examples.plain_loop.plain_loop import loss_of_own_network, train
from protoseg.nn import PrototypeHead
from protoseg.types import Batch, ProtosegError

SMALL = ("encoder.name=test_resnet", "encoder.pretrained=false", "head.num_prototypes=2")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Dark at the left, bright at the right, void in the middle."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 100, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    image[..., 32:] += 100
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    label[..., 32:], label[..., 30:34] = 1, -1
    return image, label


def test_a_network_by_name(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    train([batch] * 40, ["left", "right"], str(tmp_path / "own.ckpt"), *SMALL)
    model = protoseg.load(tmp_path / "own.ckpt", device="cpu")
    assert model.classes == ("left", "right")
    image, label = batch
    right = torch.from_numpy(model.predict(image[0]).labels.astype(int)) == label[0]
    assert right[label[0] >= 0].float().mean() > 0.9


def test_accumulated_batches_are_forgotten_with_their_step(batch: tuple[Tensor, Tensor]) -> None:
    network = protoseg.build(["left", "right"], *SMALL)
    for _ in range(2):
        network.loss(*batch)
        before = network.model.head.memory.prototypes.clone()
        network.after_optimizer_step()
    assert not torch.equal(before, network.model.head.memory.prototypes)
    assert network.model.head.memory.updates.max() == 2


def test_a_name_that_is_none() -> None:
    with pytest.raises(ProtosegError, match="resnet5"):
        protoseg.build(["a", "b"], encoder="resnet5")


def test_the_head_on_ones_own_network(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
    head = PrototypeHead(8, 2, num_prototypes=2)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(20):
        loss = loss_of_own_network(body, head, batch[0] / 255, batch[1], stride=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.memory.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[1]  # the first one has prototypes of no pixels


def test_with_lightning_and_batches_of_ones_own(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    network = protoseg.build(["left", "right"], *SMALL, "schedule.warmup_steps=0")
    data = DataLoader([Batch(*batch, torch.tensor([[64, 64]] * 2), ["a", "b"])] * 2, batch_size=None)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    trainer.fit(network, data, data)
    assert network.model.head.memory.updates.max() == 2
    assert 0 <= float(trainer.callback_metrics["val/mIoU"]) <= 1
    network.save(tmp_path / "own.ckpt")
    assert protoseg.load(tmp_path / "own.ckpt").classes == ("left", "right")


@pytest.mark.parametrize("contrast", ["pixel_contrast", "sepico_proto"])
def test_a_loss_that_is_looked_at_moves_nothing(batch: tuple[Tensor, Tensor], contrast: str) -> None:
    network = protoseg.build(["left", "right"], *SMALL, contrast=contrast, method="supervised")

    def moved() -> set[str]:
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        network.loss(*batch)
        network.after_optimizer_step()
        return {name.rpartition(".")[2] for name, buffer in network.named_buffers() if not buffer.equal(before[name])}

    network.eval()
    assert moved() == set()
    network.train()
    assert {"prototypes", "updates"} | ({"fill"} if contrast == "pixel_contrast" else set()) <= moved()


def test_images_and_labels_of_another_form(batch: tuple[Tensor, Tensor]) -> None:
    network, (image, label) = protoseg.build(["left", "right"], *SMALL), batch
    for wrong in (
        (image.float(), label),
        (image.int(), label),
        (image, label.masked_fill(label < 0, 255)),
        (image, label - 1),
        (image, label.int()),
        (image, label[:, None]),
        (image, label[:1]),
        (image[:0], label[:0]),
        (image.to(torch.complex64), label),
    ):
        with pytest.raises(ProtosegError, match=r"expected images b 3 h w, .* int64 labels b h w of 0 to 1, or -1"):
            network.loss(*wrong)
    assert network.loss(image.float() / 255, label).isfinite()


def test_weights_by_frequency_need_data(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    words = ("loss.ce.class_weights=balanced", "schedule.warmup_steps=0")
    network = protoseg.build(["left", "right"], *SMALL, *words)
    with pytest.raises(ProtosegError, match="balanced: expected the data"):
        network.loss(*batch)
    loader = DataLoader([0], collate_fn=lambda _: Batch(*batch, torch.tensor([[64, 64]] * 2), ["a", "b"]))
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    with pytest.raises(ProtosegError, match="balanced: expected the data"):
        trainer.fit(network, loader)


def test_a_network_that_was_looked_at_is_trained_all_the_same(batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    network = protoseg.build(["left", "right"], *SMALL, "schedule.warmup_steps=0").eval()
    loader = DataLoader([0, 1], collate_fn=lambda _: Batch(*batch, torch.tensor([[64, 64]] * 2), ["a", "b"]))
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(network, loader)
    assert network.model.head.memory.updates.sum() > 0


@pytest.mark.parametrize("classes", [[1, 2], ["", "b"], ["a" * 1001, "b"], ["a", "a"], "ab"])
def test_names_that_no_checkpoint_could_say(classes: list[str]) -> None:
    with pytest.raises(ProtosegError, match="expected a list of different names"):
        protoseg.build(classes, *SMALL)


def test_random_numbers_of_the_program_stay() -> None:
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    one = protoseg.build(["left", "right"], *SMALL)
    assert torch.rand(1) == drawn
    other = protoseg.build(["left", "right"], *SMALL, "seed=1")
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
