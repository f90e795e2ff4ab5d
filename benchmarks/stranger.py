"""A wrapped Cityscapes network on CamVid: ``python -m benchmarks.stranger ESPNETV2.onnx CAMVID [CLASS …]``.

Its mIoU on CamVid val as it is; how well its confidence finds wrong pixels, before and after some training images; all
classes by a linear discriminant of its frozen maps from these; each CLASS, whose channels count as none, from few.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import protoseg
from protoseg.analysis.stream import Scene, look
from protoseg.analysis.uncertainty import UncertaintyCollector
from protoseg.data import CAMVID, CamVid, SegmentationDataset
from protoseg.data.label_spaces import mapping_table, relabelled
from protoseg.data.statistics import spread
from protoseg.evaluation.metrics import SegmentationMetrics
from protoseg.models.segmentor import Segmentor
from protoseg.nn.discriminant import on_grid
from protoseg.teach import add_classes, apply_edit, with_statistics
from protoseg.teach.trial import showing
from protoseg.trained import TrainedFile
from protoseg.types import IGNORE_INDEX, LabelSpace

CITYSCAPES = (
    *("Road", "Sidewalk", "Building", "Building", "Fence", "Pole", "SignSymbol", "SignSymbol", "Tree", "Tree", "Sky"),
    *("Pedestrian", "Bicyclist", "Car", "Car", "Car", "Car", "Bicyclist", "Bicyclist", None),
)  # CamVid's class of each channel: 19 train ids, and all else
IMAGENET: Any = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
COLORS = dict(zip(CAMVID.classes, CAMVID.colors, strict=True))
SHOTS, DRAWS = (1, 5, 20), 3


def ready(network: Path, train: SegmentationDataset, images: int, left_out: str | None = None) -> TrainedFile:
    """The network with statistics of some training images; of a class that is left out nothing is known."""
    classes = [None if name == left_out else name for name in CITYSCAPES]
    palette = {name: color for name, color in COLORS.items() if name != left_out}
    data = copy.copy(train)
    data.samples = [train.samples[i] for i in spread(len(train), images)]
    if left_out:
        space, table = relabelled(CAMVID, {left_out: None})
        data.map_classes(space, mapping_table(CAMVID, space, table))
    return with_statistics(protoseg.wrap(network, classes, palette=palette, **IMAGENET).file, data, title="statistics")


def discriminant_classes(model: Segmentor, scene: Scene) -> Tensor:
    """The class of the nearest mean for every pixel, ``H W``: none of the network's own answer."""
    output = scene.output
    known, (height, width) = model.discriminant, output.logits.shape[2:]
    assert known is not None
    scores = known.bias.view(1, -1, 1, 1)
    maps = (output.embeddings, *(output.features or ()))
    for feature, stride, weight in zip(maps, known.strides, known.weight.split(known.channels, 1), strict=True):
        scores = scores + on_grid(F.conv2d(feature, weight[:, :, None, None]), (height, width), known.stride, stride)
    return known.known.classes[scene.at_pixels(scores[0]).argmax(0)]


def as_it_is(network: Path, train: SegmentationDataset, val: SegmentationDataset, images: int) -> None:
    """Its own answer, its doubt, and the discriminant's answer."""
    model = protoseg.Model.of_file(ready(network, train, images), "cpu").network
    own, placed, doubt = (
        SegmentationMetrics(CAMVID),
        SegmentationMetrics(CAMVID),
        UncertaintyCollector(model.discriminant),
    )
    for i in range(len(val)):
        image, label, _ = val[i]
        scene = look(model, image, label)
        own.update(scene.prediction, label)
        placed.update(discriminant_classes(model, scene), label)
        doubt.update(scene)
    print(f"as it is: {iou(own)[1]}; by a discriminant of its maps: {iou(placed)[1]}")
    for name, found in doubt.compute().items():
        error = found.calibration.ece if found.calibration else float("nan")
        print(f"{name}: AUROC {100 * found.auroc:.1f}, ECE {100 * error:.1f}, wrong {100 * found.error_rate:.1f} %")


def added(network: Path, train: SegmentationDataset, val: SegmentationDataset, images: int, name: str) -> None:
    """IoU of a class that the network is taught, and the others' mIoU."""
    file = ready(network, train, images, name)
    names = (*file.label_space.classes, name)
    space = LabelSpace("camvid", names, tuple(COLORS[each] for each in names))
    train, val = (ordered(data, space) for data in (train, val))
    candidates, new = showing(train, len(names) - 1), len(names) - 1
    model, taught = file.model(), {}
    for count in SHOTS:
        for draw in range(DRAWS):
            few = copy.copy(train)
            order = random.Random(draw).sample(candidates, len(candidates))
            few.samples = [train.samples[i] for i in sorted(order[:count])]
            edit, _ = add_classes(file, few, [name], draw)
            taught[count, draw] = protoseg.Model.of_file(
                TrainedFile(file.path, apply_edit(file.content, edit)), "cpu"
            ).network.discriminant
    before, metrics = SegmentationMetrics(space), {key: SegmentationMetrics(space) for key in taught}
    for i in range(len(val)):
        image, label, _ = val[i]
        scene = look(model, image, label)
        before.update(scene.prediction, label.where(label != new, IGNORE_INDEX))
        larger = scene.output._replace(logits=F.pad(scene.output.logits, (0, 0, 0, 0, 0, 1)))
        for key, known in taught.items():
            assert known is not None
            metrics[key].update(scene.at_pixels(known(larger).logits[0]).argmax(0), label)
    print(f"{name} left out: the others {iou(before)[2]:.1f}")
    for count in SHOTS:
        found = [iou(metrics[count, draw]) for draw in range(DRAWS)]
        ious, others = [each[0] for each in found], mean(each[2] for each in found)
        print(f"{name} from {count}: {mean(ious):.1f} ± {stdev(ious):.1f}, the others {others:.1f}")


def ordered(data: SegmentationDataset, space: LabelSpace) -> SegmentationDataset:
    """The data with its classes in another order."""
    data = copy.copy(data)
    data.map_classes(space, mapping_table(CAMVID, space, {name: name for name in space.classes}))
    return data


def iou(metric: SegmentationMetrics) -> tuple[float, str, float]:
    """Of the last class; the mean of all, and each, as text; the mean of all but the last."""
    each = 100 * metric.compute()["IoU"]
    listed = ", ".join(f"{value:.1f}" for value in each.tolist())
    return float(each[-1]), f"{float(each.nanmean()):.1f} ({listed})", float(each[:-1].nanmean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stranger", description=__doc__)
    parser.add_argument("network", type=Path, help="an ONNX file of Cityscapes' 19 classes and one for all else")
    parser.add_argument("camvid", type=Path, help="CamVid's folder")
    parser.add_argument("classes", nargs="*", help="left out, then taught")
    parser.add_argument("--images", type=int, default=60, help="training images of the statistics")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    train, val = (CamVid(root=chosen.camvid, split=split) for split in ("train", "val"))
    as_it_is(chosen.network, train, val, chosen.images)
    for name in chosen.classes:
        added(chosen.network, train, val, chosen.images, name)


if __name__ == "__main__":
    main()
