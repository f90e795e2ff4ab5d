"""A short training on the images of a new class alone: what the network says elsewhere in them stands for the old ones.

Without old images a network forgets. Here the encoder stays as it is, and wherever an image does not show a new class
the network is to go on saying what it said (learning without forgetting: Li and Hoiem, ECCV 2016).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from protoseg.checkpoint import NETWORKS
from protoseg.data import SegmentationDataset
from protoseg.functional.resize import downsample_label
from protoseg.models.segmentor import Segmentor
from protoseg.teach.edit import apply_edit
from protoseg.teach.operations import NewClass, placed_classes
from protoseg.trained import TrainedFile
from protoseg.types import IGNORE_INDEX

STEPS, BATCH, CROP = 150, 4, 256  # pixels: the side of what is seen of an image at once
LEARNING_RATE, WARMUP = 1e-3, 10


def tune_classes(
    file: TrainedFile,
    dataset: SegmentationDataset,
    names: Sequence[str],
    seed: int = 0,
    device: torch.device | str = "cpu",
    title: str = "",
) -> tuple[TrainedFile, list[NewClass]]:
    """Give a checkpoint new classes, and train its decoder and head for them, on nothing but the images given.

    Arguments, and what was found, as of :func:`protoseg.teach.add_classes`; the prototypes of all classes stay where
    they were placed, the embedding comes to them. The new checkpoint has no statistics, which belonged to the weights
    of before, and needs none. Raises ProtosegError: classes that are there already or have no pixel; a head without
    prototypes, or with learned weights for each class.
    """
    own = {name: part for name, part in file.content["protoseg"].items() if name != "statistics"}
    plain = replace(file, content=file.content | {"protoseg": own})
    edit, found = placed_classes(plain, dataset, names, seed, device, title)
    tuned = replace(file, content=apply_edit(plain.content, edit))
    state = dict(tuned.content["state_dict"])
    new = dataset.label_space.ids(names, "classes to add")
    for network in tuned.networks:
        model, old = tuned.model(network).to(device), file.model(network).to(device)
        model.encoder.requires_grad_(False)
        train(model, partial(distillation, model, old, new), dataset, seed, title and f"tuning ({network})")
        state |= {f"{NETWORKS[network]}{name}": tensor.cpu() for name, tensor in model.state_dict().items()}
    return replace(tuned, content=tuned.content | {"state_dict": state}), found


def train(
    model: Segmentor, loss: Callable[[Tensor, Tensor], Tensor], dataset: SegmentationDataset, seed: int, title: str
) -> None:
    """Train what of the model asks for it, in eval mode, by the loss of pieces of images: ``1 c H W``, ``1 H W``.

    So BatchNorm's statistics stay, and what is learned of an image does not depend on others.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / STEPS))
    generator = torch.Generator().manual_seed(seed)
    for _ in track(range(STEPS), title, disable=not title):
        optimizer.zero_grad()
        for index in torch.randint(len(dataset), (BATCH,), generator=generator).tolist():
            image, label, _ = dataset[index]
            image, label = (part[None].to(learned[0].device) for part in _piece(image, label, generator))
            loss(image, label).div(BATCH).backward()
        optimizer.step()
        rate.step()


def _piece(image: Tensor, label: Tensor, generator: torch.Generator) -> list[Tensor]:
    """At most ``CROP`` by ``CROP`` pixels of an image ``c H W`` and its labels ``H W``, mirrored every second time."""
    tops = [max(1, size - CROP + 1) for size in label.shape]
    top, left = (int(torch.randint(size, (), generator=generator)) for size in tops)
    mirrored = [-1] if torch.rand((), generator=generator) < 0.5 else []
    return [part[..., top : top + CROP, left : left + CROP].flip(mirrored) for part in (image, label)]


def distillation(model: Segmentor, old: Segmentor, new: Sequence[int], image: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy to the classes ``new`` of the labels where they are, to what the old network says elsewhere.

    Of an image ``1 c H W`` and its labels ``1 H W``: the mean over the cells that have a label.
    """
    with torch.no_grad():
        target = F.pad(old(image).logits.softmax(1), (0, 0, 0, 0, 0, len(new)))
    logits = model.segment(image).logits
    cells = downsample_label(label, (logits.shape[2], logits.shape[3]), model.stride)
    first = logits.shape[1] - len(new)
    for row, label_id in enumerate(new, first):
        there = (cells == label_id)[:, None]
        target = target.masked_fill(there, 0)
        target[:, row : row + 1] += there
    labelled = cells != IGNORE_INDEX
    return -(target * logits.log_softmax(1)).sum(1).mul(labelled).sum() / labelled.sum().clamp_min(1)
