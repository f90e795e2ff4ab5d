"""Classes taught one after another, by each way there is: ``python -m benchmarks.incremental CHECKPOINT``.

The checkpoint has statistics (``protoseg teach statistics``) and was trained without some classes of its data
(``data.relabel={Car: null}``). These are taught in the order of the data, each from a few training images in which it
alone is labelled, drawn by chance among those that show it; then all classes are judged on the validation split.
Fine-tuning trains the whole network for the new class and against it elsewhere, as a softmax over "the new class" and
"any other" can be trained from such masks (MiB: Cermelli et al., CVPR 2020, without its distillation).
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.analysis.stream import scenes
from protoseg.checkpoint import NETWORKS
from protoseg.data import SegmentationDataset
from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.files import write_json
from protoseg.functional.resize import downsample_label
from protoseg.models.segmentor import Segmentor
from protoseg.teach import add_classes, apply_edit, tune_classes
from protoseg.teach.operations import placed_classes
from protoseg.teach.trial import showing
from protoseg.teach.tuning import train
from protoseg.trained import TrainedFile, open_file
from protoseg.types import IGNORE_INDEX

Way = Callable[[TrainedFile, SegmentationDataset, str, int], TrainedFile]


def add(file: TrainedFile, few: SegmentationDataset, name: str, seed: int) -> TrainedFile:
    """By ``teach add``."""
    return replace(file, content=apply_edit(file.content, add_classes(file, few, [name], seed)[0]))


def tune(file: TrainedFile, few: SegmentationDataset, name: str, seed: int) -> TrainedFile:
    """By ``teach tune``."""
    return tune_classes(file, few, [name], seed)[0]


def fine_tune(file: TrainedFile, few: SegmentationDataset, name: str, seed: int) -> TrainedFile:
    """The same training of all weights, with nothing that keeps the old classes."""
    own = {part: value for part, value in file.content["protoseg"].items() if part != "statistics"}
    plain = replace(file, content=file.content | {"protoseg": own})
    edit, _ = placed_classes(plain, few, [name], seed, "cpu", "")
    larger = replace(file, content=apply_edit(plain.content, edit))
    model = larger.model()
    train(model, partial(new_or_not, model, few.label_space.classes.index(name)), few, seed, "")
    state = {f"{NETWORKS['student']}{key}": tensor for key, tensor in model.state_dict().items()}
    return replace(larger, content=larger.content | {"state_dict": larger.content["state_dict"] | state})


def new_or_not(model: Segmentor, new: int, image: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy over "the new class" and "any other", all that masks of one class tell."""
    logits = model.segment(image).logits
    cells = downsample_label(label, (logits.shape[2], logits.shape[3]), model.stride)
    both = torch.stack([logits[:, :-1].logsumexp(1), logits[:, -1]], 1)
    return F.cross_entropy(both, (cells == new).long().where(cells != IGNORE_INDEX, -100))


WAYS: dict[str, Way] = {"add": add, "tune": tune, "fine-tuning": fine_tune}


def taught(
    file: TrainedFile, names: Sequence[str], way: Way, data: SegmentationDataset, shots: int, draw: int
) -> TrainedFile:
    """The checkpoint with the classes, one after another, from so many images each."""
    for name in names:
        candidates = showing(data, data.label_space.classes.index(name))
        few = copy.copy(data)
        drawn = random.Random(draw).sample(candidates, len(candidates))[:shots]
        few.samples = [data.samples[i] for i in sorted(drawn)]
        file = way(file, few, name, draw)
    return file


def judged(file: TrainedFile, val: Any) -> dict[str, float]:
    """IoU of each class of the data, in %."""
    space = val.dataset.label_space
    order = torch.tensor(space.ids(file.label_space.classes, f"classes of {file.path}"))
    metric = SegmentationMetrics(space)
    for scene in scenes(file.model(), val, "validating"):
        metric.update(order[scene.prediction], scene.label)
    return {name: 100 * float(iou) for name, iou in zip(space.classes, metric.compute()["IoU"], strict=True)}


def main() -> None:
    """Entry of ``python -m benchmarks.incremental``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--shots", type=int, default=20, help="images of each class; 20")
    parser.add_argument("--draws", type=int, nargs="+", default=[0], metavar="SEED", help="of images; 0")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--joint", type=Path, metavar="CKPT", help="trained with all classes: the upper bound")
    parser.add_argument("--root", help="folder of the data, where it is not where the training found it")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    file = open_file(options.checkpoint)
    data: Any = file.datamodule(options.root, lambda section: section | {"relabel": None}, num_workers=0)
    names = [name for name in data.label_space.classes if name not in file.label_space.classes]
    images, val = data.dataset(data.train_split), data.eval_dataloader(data.val_split)
    print(f"{file.label_space.num_classes} classes, then {', '.join(names)}: {options.shots} images each", flush=True)
    found = {}

    def show(way: str, made: TrainedFile, seconds: float) -> None:
        iou = judged(made, val)
        first = [value for name, value in iou.items() if name not in names]
        means = {"all": [*iou.values()], "first": first, "new": [iou[name] for name in names]}
        found[way] = {of: sum(values) / len(values) for of, values in means.items()} | {"seconds": seconds, "iou": iou}
        text = ", ".join(f"{of} {found[way][of]:.1f}" for of in means)
        print(
            f"{way}: {text}; {seconds:.0f} s;",
            " ".join(f"{name} {value:.1f}" for name, value in iou.items()),
            flush=True,
        )

    for way in options.ways:
        for draw in options.draws:
            start = time.perf_counter()
            made = taught(file, names, WAYS[way], images, options.shots, draw)
            show(f"{way}, draw {draw}", made, time.perf_counter() - start)
    if options.joint:
        show("joint", open_file(options.joint), 0.0)
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
