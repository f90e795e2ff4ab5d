"""What clicks need and leave: labelled cells as a data set, statistics of unlabelled images, a network without a class,
the labelled folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from protoseg.analysis.stream import look
from protoseg.checkpoint import own_part
from protoseg.data import SegmentationDataset
from protoseg.data.label_spaces import FILE_IGNORED, Ids
from protoseg.evaluation.pictures import label_png
from protoseg.files import write_file
from protoseg.functional.discriminant import MIN_CELLS, Moments, Statistics, moments, statistics
from protoseg.functional.prototypes import class_prototypes
from protoseg.models.encoders import Encoder
from protoseg.nn.discriminant import frozen_maps
from protoseg.teach.edit import apply_edit
from protoseg.teach.operations import edit_of, entries_of, learned
from protoseg.trained import TrainedFile
from protoseg.trusted import SLOTS
from protoseg.types import IGNORE_INDEX, LabelSpace

CELLS = 1000  # of each image, evenly spread
SHRINKAGE = 0.8  # of correlations in classes that nobody named: 0.3 was 3 to 7 points of mIoU worse after 30 clicks
KINDS = 24  # of pixels that look alike, which stand for classes where nobody has named any
STAND_IN = LabelSpace("clicks", ("(nothing)",), ((0, 0, 0),))


class Evidence(SegmentationDataset):
    """Images of which some cells, of a grid of ``stride`` pixels each, are labelled; by their paths, ``h w``."""

    def __init__(self, cells: Mapping[Path, Ids], stride: int, like: SegmentationDataset, space: LabelSpace) -> None:
        super().__init__([(path, path) for path in cells], "train")
        self.cells, self.stride, self.reader, self.label_space = cells, stride, like.reader, space

    def read_label(self, index: int) -> Ids:
        path, _ = self.samples[index]
        height, width = self.reader.read(path).shape[:2]
        return self.cells[path].repeat(self.stride, 0).repeat(self.stride, 1)[:height, :width]


def blank_file(name: str, section: Mapping[str, Any], encoder: Encoder) -> TrainedFile:
    """An encoder, made by the ``section`` of a config, as a checkpoint whose one class stands in for those to come.

    Its grid is that of the finest map; its statistics are all that will tell classes apart.
    """
    config = dict.fromkeys(SLOTS) | {
        "encoder": dict(section),
        "decoder": {"_target_": "protoseg.models.decoders.FCNDecoder", "_partial_": True, "in_index": 0}
        | {"num_convs": 0, "dropout": 0.0},
        "head": {"_target_": "protoseg.nn.LogitsHead", "channel_class": [0] * encoder.channels[0]},
    }
    state = {f"model.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    return TrainedFile(Path(name), {"state_dict": state, "protoseg": own_part(config, STAND_IN)})


def without_stand_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a :func:`blank_file` that was taught, with the taught classes alone."""
    own, config = checkpoint["protoseg"], checkpoint["protoseg"]["config"]
    space = own["label_space"] | {key: own["label_space"][key][1:] for key in ("classes", "colors")}
    known = {network: taught_alone(Statistics(**kept))._asdict() for network, kept in own["statistics"].items()}
    config = config | {"head": config["head"] | {"channel_class": [0] * len(config["head"]["channel_class"])}}
    return checkpoint | {"protoseg": own | {"label_space": space, "statistics": known, "config": config}}


def taught_alone(known: Statistics) -> Statistics:
    """Without class 0, whose means are of no class to be found: class 1 is 0 from now on, and so forth.

    Pixels fall to the first class that is there where no other is likelier: it counts as one of the training's.
    """
    there = known.taught & (known.classes > 0)
    classes = known.classes[there] - 1
    return known._replace(
        means=known.means[there], classes=classes, taught=classes != classes.min(), bias=known.bias[1:]
    )


def teach_pixels(
    file: TrainedFile, dataset: SegmentationDataset, names: Sequence[str], device: Any = "cpu"
) -> dict[str, Any]:
    """The checkpoint with what labelled pixels of ``dataset`` say of classes, its own ones and others alike.

    Others come to it as by :func:`protoseg.teach.add_classes`; one of its own gets a further mean in the statistics,
    which wins pixels as that of a taught class does, where it is nearer than all means of the training. Raises as
    ``add_classes``.
    """
    space, given = file.label_space, dataset.label_space
    ids = given.ids(names, "classes to teach")
    new, _, means = learned(file, dataset, ids, {}, 0, device, "")
    fresh = [(given.classes[i], given.colors[i], -1 - place) for place, i in enumerate(ids)]
    fresh = [entry for entry in fresh if entry[0] not in space.classes]
    added = {network: {name: of[name] for name, *_ in fresh} for network, of in means.items()}
    content = apply_edit(file.content, edit_of(file, [*entries_of(space), *fresh], new, {}, added))
    kept = dict(content["protoseg"]["statistics"])
    for network, of in means.items():
        own = [name for name in of if name in space.classes]
        known, classes = Statistics(**kept[network]), space.ids(own, "") if own else []
        kept[network] = known.with_taught([of[name] for name in own], classes, len(known.bias))._asdict()
    return content | {"protoseg": content["protoseg"] | {"statistics": kept}}


def folder_statistics(file: TrainedFile, photos: Sequence[Tensor], device: Any = "cpu") -> TrainedFile:
    """The checkpoint with statistics of images without labels, classes being what the network takes their pixels for.

    Of a blank one, kinds of pixels whose maps point the same way from their mean, by :func:`class_prototypes`.
    """
    made, blank = {}, file.label_space.classes == STAND_IN.classes
    for network in file.networks:
        model, maps, labels = file.model(network).to(device), list[Tensor](), list[Tensor]()
        for photo in photos:
            scene = look(model, photo)
            cells = torch.arange(0, scene.labelled.numel(), -(-scene.labelled.numel() // CELLS), device=device)
            maps.append(frozen_maps(scene.output, scene.stride, model.feature_strides, cells).cpu())
            labels.append(scene.cell_prediction[cells].cpu())
        if blank:
            mean, spread = torch.cat(maps).mean(0), torch.cat(maps).std(0).clamp_min(1e-6)
            units = [F.normalize((one - mean) / spread, dim=1) for one in maps]
            count = max(2, min(KINDS, min(map(len, maps)) // (3 * MIN_CELLS)))  # so that images show some twice
            kinds = class_prototypes(torch.cat([unit[::2] for unit in units]), count).prototypes
            labels = [(unit @ kinds.T).argmax(1) for unit in units]
        if len(photos) == 1:  # halves of the image tell how a class differs between images
            maps, labels = [*maps[0].chunk(2)], [*labels[0].chunk(2)]
        c, calibration = KINDS if blank else model.num_classes, (torch.ones(()), torch.zeros(model.num_classes))
        total = reduce(Moments.plus, (moments(*one, c) for one in zip(maps, labels, strict=True)))
        known = statistics(total, calibration, SHRINKAGE)
        made[network] = (known._replace(classes=torch.zeros_like(known.classes)) if blank else known)._asdict()
    return replace(file, content=file.content | {"protoseg": file.content["protoseg"] | {"statistics": made}})


def publish(folder: Path, name: str, files: Sequence[Path], label: Ids | None, space: LabelSpace) -> None:
    """Bring a folder that ``data=folder`` trains on to what is accepted of an image: its files and mask, or nothing."""
    image, mask = folder / "images" / name, (folder / "masks" / name).with_suffix(".png")
    if label is None:
        for path in (mask, image.with_suffix(".json"), *(image.with_name(file.name) for file in files)):
            path.unlink(missing_ok=True)
        return
    for file in files:
        write_file(image.with_name(file.name), partial(shutil.copyfile, file))
    ids = torch.from_numpy(label).long()
    write_file(mask, partial(label_png, ids.where(ids != FILE_IGNORED, IGNORE_INDEX), space))
    classes = {name: [*color] for name, color in zip(space.classes, space.colors, strict=True)}
    text = yaml.safe_dump({"classes": classes, "void": [FILE_IGNORED]}, sort_keys=False, allow_unicode=True)
    write_file(folder / "classes.yaml", lambda path: path.write_text(text, encoding="utf-8"))
