"""Whole training by Lightning: a plain model of segmentation-models-pytorch with cross-entropy, and ours.

The network is the same (encoder by timm, FPN by smp), the batch is the same, and each is fitted by a bare Trainer, a
step of one, then a step of the next. What a user would write: float images that were normalised before, logits at full
size, ``F.cross_entropy``, AdamW. Ours has uint8 images, which it normalises in the step, and once a softmax head, once
prototypes (K per class) with PPC and PPD.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from protoseg.losses import CrossEntropy, PixelPrototypeContrast, PixelPrototypeDistance, Term
from protoseg.models.decoders import FPNDecoder
from protoseg.models.encoders import TimmEncoder
from protoseg.models.segmentor import Segmentor
from protoseg.nn import Head, ParametricHead, PrototypeHead
from protoseg.training.base import SupervisedModule
from protoseg.types import Batch, LabelSpace

ENCODER, PYRAMID, WIDTH = "tf_efficientnet_lite0", 128, 64


class AgainstSetting(NamedTuple):
    """Sizes; the defaults are those of experiment=camvid_prototype."""

    batch: int = 8
    height: int = 240
    width: int = 320
    classes: int = 11
    prototypes: int = 10

    @property
    def images(self) -> int:
        """Of one step, for the images per second."""
        return self.batch

    def describe(self) -> str:
        s = self
        return f"lite0 + FPN, {s.batch} x {s.height} x {s.width}, C={s.classes}, K={s.prototypes}"


def plain_network(classes: int) -> nn.Module:
    """By smp."""
    sizes = {"decoder_pyramid_channels": PYRAMID, "decoder_segmentation_channels": WIDTH}
    return smp.FPN(f"tu-{ENCODER}", encoder_depth=5, encoder_weights=None, classes=classes, **sizes)


def our_network(head: Callable[[int, int], Head], classes: int) -> Segmentor:
    """The same encoder and decoder."""
    decoder = partial(FPNDecoder, pyramid_channels=PYRAMID, segmentation_channels=WIDTH)
    return Segmentor(TimmEncoder(ENCODER, pretrained=False), decoder, head, classes)


class PlainModule(pl.LightningModule):
    """As one would write it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = plain_network(classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        image, label = batch
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % 32, 0, -height % 32))  # of other sizes it takes none
        return F.cross_entropy(self.model(padded)[..., :height, :width], label, ignore_index=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class OurModule(SupervisedModule):
    """Ours with the same optimizer, and without a schedule."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


def against_steps(setting: AgainstSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Fits by name, the plain one first."""
    s, generator = setting, torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (s.batch, 3, s.height, s.width), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, s.classes, (s.batch, s.height // 8, s.width // 8), generator=generator)
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    batch = Batch(image, label, torch.tensor([label.shape[1:]] * s.batch), [""] * s.batch)
    prototypes: list[Term] = [PixelPrototypeContrast(), PixelPrototypeDistance()]
    heads: dict[str, tuple[Callable[[int, int], Head], list[Term]]] = {
        "ours, softmax": (ParametricHead, []),
        "ours, prototypes": (partial(PrototypeHead, num_prototypes=s.prototypes), prototypes),
    }
    plain = PlainModule(s.classes)
    modules: dict[str, tuple[pl.LightningModule, Any]] = {"smp + Lightning": (plain, (image / 127.5 - 1, label))}
    names = tuple(map(str, range(s.classes)))
    space = LabelSpace("benchmark", names, tuple((i, i, i) for i in range(s.classes)))
    for name, (head, terms) in heads.items():
        model = our_network(head, s.classes)
        losses = {type(term).__name__: term for term in [CrossEntropy(), *terms]}
        modules[name] = OurModule(model, space, losses, torch.optim.AdamW, torch.optim.lr_scheduler.ConstantLR), batch
    for module, _ in modules.values():
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {name: _steps_of_a_trainer(module, data, device) for name, (module, data) in modules.items()}


class Handed(IterableDataset[Any]):
    """One batch again and again, each when it is called for: a call lets a Trainer make one step, and waits for it."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.wanted: Queue[None] = Queue()
        self.asked: Queue[Exception | None] = Queue()

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.asked.put(None)
            self.wanted.get()
            yield self.batch

    def __call__(self) -> None:
        self.wanted.put(None)
        self.wait()

    def wait(self) -> None:
        """Until the Trainer asks for a batch; raises what it raised."""
        error = self.asked.get()
        if error is not None:
            raise error


def _steps_of_a_trainer(module: pl.LightningModule, batch: Any, device: torch.device) -> Callable[[], object]:
    """A Trainer that never ends, in a thread, so that its set-up is not timed and all its cost of a step is."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    bare = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options: dict[str, Any] = dict.fromkeys(bare, False)
    kind = "gpu" if device.type == "cuda" else "cpu"
    trainer = pl.Trainer(max_steps=-1, max_epochs=-1, accelerator=kind, devices=1, **options)
    steps = Handed(batch)
    loader = DataLoader(steps, batch_size=None, collate_fn=lambda same: same)

    def fit() -> None:
        try:
            trainer.fit(module, loader)
        except Exception as error:
            steps.asked.put(error)

    Thread(target=fit, daemon=True).start()
    steps.wait()
    for _ in range(2):  # it fetches a batch before it trains on the one before
        steps()
    return steps
