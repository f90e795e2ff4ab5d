"""``protoseg data show``: a sheet of images with their labels over them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from protoseg.cli.data_splits import data_command, load_data, splits_by_part
from protoseg.data import SegmentationDataset
from protoseg.data.statistics import spread
from protoseg.evaluation.pictures import MANY_CLASSES, PAPER, Picture, fit_width, legend, overlay
from protoseg.files import write_file
from protoseg.text import say
from protoseg.types import IGNORE_INDEX, ProtosegError

_COLUMNS, _WIDTH, _GAP = 2, 420, 8
"""Pairs in a row, width of a picture, and pixels between two."""


def add_show(commands: Any) -> None:
    command = data_command(
        commands,
        "show",
        show,
        "Write a sheet of images, each beside its labels, for the training and the validation split.",
        "camvid --count 12 --out pictures",
        out=True,
    )
    command.add_argument("--count", type=int, default=8, help="images a sheet, spread evenly over the split")


def show(options: argparse.Namespace) -> None:
    """Write ``DATA_SPLIT.jpg`` for each split of ``data=…``.

    Raises:
        ProtosegError: data that is missing or bad.
    """
    if options.count < 1:
        raise ProtosegError(f"--count: expected at least 1 image, got {options.count}")
    for part, splits in splits_by_part(load_data(options)).items():
        for split, make in splits.items():
            name = "_".join(filter(None, (options.data, part, split)))
            sheet = Image.fromarray(contact_sheet(make(), options.count))
            path = options.out / f"{name}.jpg"
            write_file(path, lambda partial, sheet=sheet: sheet.save(partial, format="JPEG", quality=90))  # type: ignore[misc]
            say(f"Picture: {path}")


def contact_sheet(dataset: SegmentationDataset, count: int) -> Picture:
    """Pairs of image and overlay in rows over a legend, ``h w 3``; ``count`` samples, spread evenly."""
    chosen = spread(len(dataset), count)
    tiles: list[Picture] = []
    classes: set[int] = set()
    for index in track(chosen, "drawing", transient=True, console=Console(stderr=True)):
        image, label, _ = dataset[index]
        classes |= set(label.unique().tolist())
        for picture in (image.permute(1, 2, 0).numpy(), overlay(image, label, dataset.label_space)):
            tiles.append(fit_width(picture, (_WIDTH, _WIDTH)))
    width = min(2 * _COLUMNS, len(tiles)) * (_WIDTH + _GAP) + _GAP
    many = dataset.label_space.num_classes > MANY_CLASSES
    shown = sorted(classes - {IGNORE_INDEX}) if many else None
    rows = [_row(tiles[i : i + 2 * _COLUMNS], width) for i in range(0, len(tiles), 2 * _COLUMNS)]
    return np.concatenate([*rows, legend(dataset.label_space, width, shown)])


def _row(tiles: Sequence[Picture], width: int) -> Picture:
    row = np.full((max(len(tile) for tile in tiles) + _GAP, width, 3), PAPER, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        left = _GAP + i * (_WIDTH + _GAP)
        row[_GAP : _GAP + len(tile), left : left + _WIDTH] = tile
    return row
