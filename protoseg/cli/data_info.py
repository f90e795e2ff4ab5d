"""``protoseg data info``: images, sizes and class frequencies of a data set, as tables and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from protoseg.cli.data_splits import data_command, load_data, splits_by_part
from protoseg.data import SegmentationDataset
from protoseg.data.labelled import label_notes, nothing_labelled
from protoseg.data.statistics import ClassStatistics, class_statistics, image_sizes
from protoseg.evaluation.pictures import bars_figure, frequent_classes, short_name
from protoseg.files import write_file
from protoseg.text import Terminal
from protoseg.types import LabelSpace

_SIZES_SHOWN = 4


def add_info(commands: Any) -> None:
    data_command(
        commands,
        "info",
        info,
        "Images, sizes and class frequencies of the training and validation splits, as tables and as a picture.",
        "camvid --out pictures",
        out=True,
    )


def info(options: argparse.Namespace) -> None:
    """Print the tables of ``data=…`` and write ``DATA_classes.png``.

    Raises:
        ProtosegError: data that is missing or bad.
    """
    datasets = {
        " ".join(filter(None, (part, split))): make()
        for part, splits in splits_by_part(load_data(options)).items()
        for split, make in splits.items()
    }
    terminal = Terminal()
    terminal.print(_files_table(options.data, datasets))
    labelled = {title: data for title, data in datasets.items() if all(mask for _, mask in data.samples)}
    if not labelled:
        terminal.print("No split has masks.")
        return
    statistics = {title: class_statistics(dataset) for title, dataset in labelled.items()}
    label_space = next(iter(labelled.values())).label_space
    terminal.print(_classes_table(label_space, statistics))
    for title, found in statistics.items():
        if not found.counts.any():
            raise nothing_labelled(labelled[title])
        total = sum(width * height * count for (width, height), count in image_sizes(labelled[title]).items())
        ignored, looked = 1 - found.pixels.sum() / total, f"the {len(found.names)} masks of {title}"
        for note in label_notes(label_space, found.pixels, ignored, looked):
            terminal.say(f"note: {note}")
        if labelled[title].mask_reading:
            terminal.say(f"{title}: masks are read as: {labelled[title].mask_reading}")
    path = options.out / f"{options.data}_classes.png"
    shares = {title: class_shares(found) for title, found in statistics.items()}
    write_file(path, bars_figure(shares, label_space, f"{options.data}: share of the labelled pixels").savefig)
    terminal.say(f"Picture: {path}")


def class_shares(statistics: ClassStatistics) -> np.ndarray:
    """Share of each class among the labelled pixels, fp64 ``c``; 0 where no pixel is labelled."""
    return np.asarray(statistics.pixels / max(1, statistics.pixels.sum()))


def _files_table(data: str, datasets: Mapping[str, SegmentationDataset]) -> Table:
    table = Table(title=data)
    for column in ("split", "images", "masks", "width x height"):
        table.add_column(column, justify="left" if column in ("split", "width x height") else "right")
    for title, dataset in datasets.items():
        sizes = image_sizes(dataset).most_common()
        shown = [f"{w} x {h} ({count:,})" for (w, h), count in sizes[:_SIZES_SHOWN]]
        more = [f"{len(sizes) - _SIZES_SHOWN} more sizes"] if len(sizes) > _SIZES_SHOWN else []
        masks = sum(mask is not None for _, mask in dataset.samples)
        table.add_row(title, f"{len(dataset):,}", f"{masks:,}", ", ".join(shown + more))
    return table


def _classes_table(label_space: LabelSpace, statistics: Mapping[str, ClassStatistics]) -> Table:
    table = Table(title=f"{label_space.num_classes} classes of the label space {label_space.name!r}")
    for column in ("id", "class", "kind"):
        table.add_column(column)
    for title in statistics:
        table.add_column(f"{title}: pixels %", justify="right")
        table.add_column("images", justify="right")
    shares = {title: class_shares(found) for title, found in statistics.items()}
    chosen = frequent_classes(np.sum([*shares.values()], axis=0))
    for train_id in chosen:
        name = label_space.classes[train_id]
        kind = "thing" if name in label_space.things else "stuff"
        cells = [str(train_id), short_name(name), kind if label_space.things else ""]
        for title, found in statistics.items():
            present = (found.counts[:, train_id] > 0).sum()
            cells += [f"{100 * shares[title][train_id]:.3f}", f"{present:,}"]
        table.add_row(*cells)
    rest = np.setdiff1d(np.arange(label_space.num_classes), chosen)
    if len(rest):
        cells = ["", f"{len(rest)} more classes", ""]
        for title, found in statistics.items():
            present = (found.counts[:, rest] > 0).any(axis=1).sum()
            cells += [f"{100 * shares[title][rest].sum():.3f}", f"{present:,}"]
        table.add_row(*cells)
    return table
