"""What the commands of the data tool share: the data named on the command line, and its splits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from protoseg.data import AdaptationDataModule, SegmentationDataModule, SegmentationDataset, limit_pixels
from protoseg.run.config import composed

Splits = dict[str, Callable[[], SegmentationDataset]]


def data_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str, out: bool = False
) -> argparse.ArgumentParser:
    """Add a command that takes ``DATA [KEY=VALUE …]``, and with ``out`` the folder of what it writes."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: protoseg data {name} {example}"
    )
    command.add_argument("data", help="a file of conf/data, e.g. camvid, gta5_to_cityscapes")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. data.root=FOLDER")
    if out:
        command.add_argument("--out", type=Path, default=Path(), help="folder of the picture (here unless said)")
    command.set_defaults(run=run)
    return command


def load_config(options: argparse.Namespace) -> DictConfig:
    """The composed section ``data``; its ``max_pixels`` holds from now on."""
    config = composed("train", [f"data={options.data}", *options.overrides])
    limit_pixels(config.max_pixels)
    section: DictConfig = config.data
    return section


def load_data(options: argparse.Namespace) -> SegmentationDataModule | AdaptationDataModule:
    """The DataModule of ``data=…``; no file is looked at yet."""
    datamodule: SegmentationDataModule | AdaptationDataModule = instantiate(load_config(options))
    return datamodule


def splits_by_part(datamodule: SegmentationDataModule | AdaptationDataModule) -> dict[str, Splits]:
    """By part ("" or, of adaptation, "source" and "target"), the splits that training and validation read.

    The target's training masks, which training never opens, are left out.
    """
    if isinstance(datamodule, SegmentationDataModule):
        return {"": _splits(datamodule, validated=True)}
    return {
        "source": _splits(datamodule.source, validated=datamodule.validate_source),
        "target": _splits(datamodule.target, validated=True),
    }


def _splits(part: SegmentationDataModule, validated: bool) -> Splits:
    labels = {part.train_split: part.labels} | ({part.val_split: True} if validated else {})
    return {split: lambda split=split, labels=labels: part.dataset(split, labels) for split, labels in labels.items()}  # type: ignore[misc]
