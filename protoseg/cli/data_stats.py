"""``protoseg data stats``: class counts, and what sampling and class weights make of them."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from rich.table import Table

from protoseg.cli.data_splits import data_command, load_data
from protoseg.data import RareClasses
from protoseg.data.statistics import ClassStatistics, rare_class_probability
from protoseg.evaluation.pictures import frequent_classes, short_name
from protoseg.losses.segmentation import balanced_class_weights
from protoseg.text import Terminal


def add_stats(commands: Any) -> None:
    data_command(
        commands,
        "stats",
        show_statistics,
        "Count the pixels of each class in the training masks (of domain adaptation: the source's), keep them in a "
        "file, and show them with what rare-class sampling and balanced class weights make of them. Stopped, it goes "
        "on from there. Training reads that file, and makes it where it is missing.",
        "gta5_to_cityscapes data.source.root=/data/gta5",
    )


def show_statistics(options: argparse.Namespace) -> None:
    """Make (where missing) and print the class statistics of ``data=…``.

    Raises:
        ProtosegError: data that is missing or bad.
    """
    statistics = load_data(options).class_statistics()
    terminal = Terminal()
    terminal.print(statistics_table(statistics, f"{options.data}: {len(statistics.names)} training masks"))
    terminal.say(f"File: {statistics.path or 'none could be written'}")


def statistics_table(statistics: ClassStatistics, title: str) -> Table:
    """Pixels, share of the labelled pixels, images, probability under rare-class sampling and balanced weight."""
    temperature = RareClasses.temperature
    pixels = statistics.pixels
    probability = rare_class_probability(pixels, temperature)
    weights = balanced_class_weights(torch.from_numpy(pixels / pixels.sum()))
    table = Table(title=title)
    table.add_column("class")
    for column in ("pixels", "share %", "images", "most in one image", f"drawn % at T = {temperature}", "weight"):
        table.add_column(column, justify="right")
    chosen = frequent_classes(pixels)
    for train_id in chosen:
        counts = statistics.counts[:, train_id]
        table.add_row(
            short_name(statistics.classes[train_id]),
            f"{pixels[train_id]:,}",
            f"{100 * pixels[train_id] / pixels.sum():.3f}",
            f"{(counts > 0).sum():,}",
            f"{counts.max():,}",
            f"{100 * probability[train_id]:.2f}",
            f"{weights[train_id].item():.2f}",
        )
    rest = np.setdiff1d(np.arange(len(pixels)), chosen)
    if len(rest):
        counts = statistics.counts[:, rest]
        table.add_row(
            f"{len(rest)} more classes",
            f"{pixels[rest].sum():,}",
            f"{100 * pixels[rest].sum() / pixels.sum():.3f}",
            f"{(counts > 0).any(axis=1).sum():,}",
            f"{counts.sum(axis=1).max():,}",
            f"{100 * probability[rest].sum():.2f}",
        )
    return table
