"""``python -m protoseg.data``: the tool for data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from protoseg.cli import CONFIG_DIR
from protoseg.cli.errors import run_with_clear_errors
from protoseg.data import AdaptationDataModule, RareClasses, SegmentationDataModule
from protoseg.data.statistics import ClassStatistics, rare_class_probability


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m protoseg.data``; ends with exit code 1 and one message at wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.data",
        description=__doc__.replace("``python -m protoseg.data``: the", "The"),  # type: ignore[union-attr]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    stats = commands.add_parser(
        "stats",
        help="pixels of each class in the training masks, and what rare-class sampling makes of them",
        description="Count the pixels of each class in the training masks (of domain adaptation: the source's), keep "
        "them in a file, and show them. Training reads that file, and makes it where it is missing.",
        epilog="example: python -m protoseg.data stats gta5_to_cityscapes data.source.root=/data/gta5",
    )
    stats.add_argument("data", help="a file of conf/data, e.g. camvid, gta5_to_cityscapes")
    stats.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. data.root=FOLDER")
    options = parser.parse_args(arguments)
    run_with_clear_errors(lambda: show_statistics(options.data, options.overrides), CONFIG_DIR, "train")


def show_statistics(data: str, overrides: Sequence[str]) -> None:
    """Make (where missing) and print the class statistics of ``data=…``.

    Raises:
        ProtosegError: data that is missing or bad.
    """
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", [f"data={data}", *overrides])
    datamodule: SegmentationDataModule | AdaptationDataModule = instantiate(cfg.data)
    statistics = datamodule.class_statistics()
    console = Console()
    console.print(statistics_table(statistics, f"{data}: {len(statistics.names)} training masks"))
    console.print(f"File: {statistics.path or 'none could be written'}", soft_wrap=True, highlight=False)


def statistics_table(statistics: ClassStatistics, title: str) -> Table:
    """Pixels, share of the labelled pixels, images and probability under rare-class sampling of each class."""
    temperature = RareClasses.temperature
    pixels = statistics.pixels
    probability = rare_class_probability(pixels, temperature)
    table = Table(title=title)
    table.add_column("class")
    for column in ("pixels", "share %", "images", "most in one image", f"drawn % at T = {temperature}"):
        table.add_column(column, justify="right")
    for train_id, name in enumerate(statistics.classes):
        counts = statistics.counts[:, train_id]
        table.add_row(
            name,
            f"{pixels[train_id]:,}",
            f"{100 * pixels[train_id] / pixels.sum():.3f}",
            f"{(counts > 0).sum():,}",
            f"{counts.max():,}",
            f"{100 * probability[train_id]:.2f}",
        )
    return table
