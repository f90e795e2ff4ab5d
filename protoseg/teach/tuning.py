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

from protoseg.analysis.stream import prototype_memory
from protoseg.checkpoint import NETWORKS
from protoseg.data import SegmentationDataset
from protoseg.functional.resize import downsample_label, image_size
from protoseg.models.segmentor import Segmentor
from protoseg.teach.edit import apply_edit, editable_memories
from protoseg.teach.operations import CPU, Device, NewClass, placed_classes
from protoseg.trained import TrainedFile
from protoseg.types import IGNORE_INDEX, Names, ProtosegError

STEPS, LEARNING_RATE, WARMUP = 240, 1e-3, 10  # one image a step
MAX_SIDE = 1024  # of a larger image a part; parts of 256 pixels of CamVid's 480 x 360 were 9 points of IoU worse


def tune_classes(
    file: TrainedFile, dataset: SegmentationDataset, names: Names, seed: int = 0, device: Device = CPU, title: str = ""
) -> tuple[TrainedFile, list[NewClass]]:
    """Give a checkpoint new classes, and train its decoder and head for them, on nothing but the images given.

    Arguments, and what was found, as of :func:`protoseg.teach.add_classes`. Prototypes move as in any training. The new
    checkpoint has no statistics, which belonged to the weights of before, and needs none: any number of classes can be
    given in turns. Raises ProtosegError: classes that are there already or have no pixel; a head without prototypes, or
    with learned weights for each class.
    """
    if not editable_memories(file):
        raise ProtosegError(f"tune: expected prototypes in {file.path}, got the channels of a wrapped network")
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
    """Train what of the model asks for it, by the loss of one image a step and its labels, ``1 c H W`` and ``1 H W``.

    In eval mode: BatchNorm's statistics stay.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / STEPS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in track(range(STEPS), title, disable=not title):
            image, label, _ = dataset[int(torch.randint(len(dataset), ()))]
            optimizer.zero_grad()
            # Of a large image a part, mirrored every second time.
            top, left = (int(torch.randint(max(1, size - MAX_SIDE + 1), ())) for size in label.shape)
            mirrored = [-1] if torch.rand(()) < 0.5 else []
            parts = (x[..., top : top + MAX_SIDE, left : left + MAX_SIDE].flip(mirrored) for x in (image, label))
            loss(*(part[None].to(learned[0].device) for part in parts)).backward()
            optimizer.step()
            rate.step()
            prototype_memory(model).step()


def distillation(model: Segmentor, old: Segmentor, new: Sequence[int], image: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy to the classes ``new`` of the labels where they are, to what the old network says elsewhere.

    Of an image ``1 c H W`` and its labels ``1 H W``: the mean over the cells that have a label. The memory observes
    the cells by the likeliest class of this target.
    """
    with torch.no_grad():
        target = F.pad(old(image).logits.softmax(1), (0, 0, 0, 0, 0, len(new)))
    output, memory = model.segment(image), prototype_memory(model)
    cells = downsample_label(label, image_size(target), model.stride)
    for row, label_id in enumerate(new, target.shape[1] - len(new)):
        there = (cells == label_id)[:, None]
        target = target.masked_fill(there, 0)
        target[:, row : row + 1] += there
    labelled = cells != IGNORE_INDEX
    _, seen = memory.assign(output, target.argmax(1).where(labelled, IGNORE_INDEX), 1)
    memory.observe_accumulated([seen])
    wrong = -(target * output.logits.log_softmax(1)).sum(1)
    return (wrong * labelled).sum() / labelled.sum().clamp_min(1)
