"""What the commands of the analysis share: the checkpoint and the images named on the command line, and its files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protoseg.cli.tool import named
from protoseg.files import with_ending, write_file
from protoseg.run.config import composed
from protoseg.text import say
from protoseg.types import LabelSpace, ProtosegError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from protoseg.evaluation.pictures import Picture


def analysis_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that takes ``CHECKPOINT [KEY=VALUE …]``, ``--out`` and ``--images``."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: protoseg analyse {name} {example}"
    )
    command.add_argument("checkpoint", nargs="?", default="", metavar="CHECKPOINT", help="RUN/checkpoints/best.ckpt")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for evaluate.py: data=…, split=…, network=teacher, device=… (else the checkpoint's own data)",
    )
    command.add_argument("--out", type=Path, default=Path("runs/analysis"), help="folder of the results (%(default)s)")
    command.add_argument("--images", type=int, help="look at so many images, spread evenly (all unless said)")
    command.set_defaults(run=run)
    return command


def load_config(options: argparse.Namespace, *more: str) -> DictConfig:
    """The composed ``evaluate.yaml`` with the command's overrides, and ``more``.

    Raises:
        ProtosegError: no checkpoint named.
    """
    words = [word for word in (options.checkpoint, *options.overrides) if word]
    overrides = [*named(words, ("ckpt_path",)), *more]
    if not any(override.startswith("ckpt_path=") for override in overrides):
        raise ProtosegError("expected a checkpoint, got none; give RUN/checkpoints/best.ckpt")
    if options.images is not None and options.images < 1:
        raise ProtosegError(f"--images: expected at least 1 image, got {options.images}")
    return composed("evaluate", overrides)


def most_frequent(pixels: Tensor) -> list[int]:
    """Ids of the classes that are drawn unless others are named: all, or of more than 40 those with most pixels.

    Args:
        pixels: of each class, ``c``.
    """
    from protoseg.evaluation.pictures import MANY_CLASSES

    order: list[int] = pixels.argsort(descending=True).tolist()
    return sorted(order[:MANY_CLASSES])


def file_name(class_id: int, label_space: LabelSpace) -> str:
    """A name for the file of a class: its id and what a disk takes of its name."""
    return f"{class_id:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', label_space.classes[class_id])[:40]}"


def to_draw(total: int, count: int) -> set[int]:
    """Numbers of the images that get a picture, ``count`` of ``total``."""
    return {i * total // max(count, 1) for i in range(count)}


def picture_name(number: int, image: str) -> str:
    """A name for the picture of an image: its number and the name of its file."""
    return with_ending(Path(f"{number:05d}_{Path(image).stem}"), ".jpg").name


def save_json(path: Path, value: Any) -> None:
    """Write plain values; NaN becomes null."""
    from protoseg.evaluation.tables import write_json

    write_json(path, value)


def save_picture(path: Path, picture: Picture) -> None:
    """Write a picture as JPEG."""
    from PIL import Image

    write_file(path, lambda partial: Image.fromarray(picture).save(partial, format="JPEG", quality=90))


def save_figure(path: Path, figure: Any) -> None:
    """Write a figure."""
    write_file(path, figure.savefig)


def tell(out: Path) -> None:
    """Say where the results lie."""
    say(f"Results: {out}")
