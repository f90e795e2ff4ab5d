"""A network never seen before, of torch or in an ONNX file: doubt by class, new classes, another light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

import protoseg
from protoseg.data import SegmentationDataset
from protoseg.data.own import ImageFolder
from protoseg.teach import adapt_normalisation, add_classes, apply_edit, with_statistics

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def taught(
    network: nn.Module | Path,
    classes: Sequence[str | None],
    training: SegmentationDataset,
    few: SegmentationDataset,
    new: Sequence[str],
) -> protoseg.Model:
    """With a confidence by class, from training images, and classes that it did not know, from a few images."""
    model = protoseg.wrap(network, classes, **IMAGENET)
    file = with_statistics(model.file, training)
    edit, _ = add_classes(file, few, new)
    return protoseg.Model.of_file(replace(file, content=apply_edit(file.content, edit)))


def adapted(network: nn.Module, classes: Sequence[str | None], photos: Path) -> protoseg.Model:
    """With BatchNorm's statistics blended with those of photos without labels."""
    model = protoseg.wrap(network, classes, **IMAGENET)
    file, _ = adapt_normalisation(model.file, ImageFolder(photos, model.label_space))
    return protoseg.Model.of_file(file)
