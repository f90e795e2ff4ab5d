"""``protoseg data``: look at data sets, check, count and pack them, hand in predictions, draw scenes."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from protoseg.cli.tool import Tool

# Repeated here, so that --help need not import what reads them.
FORMATS = ("cityscapes", "acdc", "dark_zurich", "ade20k", "coco_stuff")
STYLES = ("day", "dusk", "fog", "rain")
LABELS = ("camvid", "cityscapes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg data``; ends with exit code 1 and one message at wrong input."""
    tool = Tool("data", "The tool for data sets.", "train")
    info = tool.command(
        "info",
        "protoseg.run.data:info",
        "Images, sizes and class frequencies of the training and validation splits, as tables and as a picture.",
        "camvid --out pictures",
    )
    check = tool.command(
        "check",
        "protoseg.run.data:check",
        "Open every file of the training and validation splits and list all faults: files without partner, unreadable "
        "ones, sizes that differ, unknown labels, images listed twice. Exit code 1 if there is any. "
        "Notes tell what is not read, and which images their EXIF turns.",
        "camvid",
    )
    show = tool.command(
        "show",
        "protoseg.run.data:show",
        "Write a sheet of images, each beside its labels, for the training and the validation split.",
        "camvid --count 12 --out pictures",
    )
    show.add_argument("--count", type=int, default=8, help="images a sheet, spread evenly over the split")
    stats = tool.command(
        "stats",
        "protoseg.run.data:stats",
        "Count the pixels of each class in the training masks (of domain adaptation: the source's), keep them in a "
        "file, and show them with what rare-class sampling and balanced class weights make of them. Stopped, it goes "
        "on from there. Training reads that file, and makes it where it is missing.",
        "gta5_to_cityscapes data.source.root=/data/gta5",
    )
    pack = tool.command(
        "pack",
        "protoseg.run.data:pack_data",
        "Copy the training and validation splits with all PNGs uncompressed: the same pixels in the same layout, about "
        "three times as large, several times as fast to read. Train on it with data.root=FOLDER.",
        "cityscapes --to /fast/cityscapes",
    )
    pack.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder of the copy")
    for command in (info, check, show, stats, pack):
        command.add_argument("data", help="a file of conf/data, e.g. camvid, gta5_to_cityscapes")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. data.root=FOLDER")
    for command in (info, show):
        command.add_argument("--out", type=Path, default=Path(), help="folder of the picture (here unless said)")

    export = tool.command(
        "export",
        "protoseg.run.data:export",
        "Write the label PNGs of evaluate.py with the ids and the names that a benchmark server wants.",
        "cityscapes RUN/labels RUN/submission (after python evaluate.py ckpt_path=BEST.ckpt mode=predict "
        "images=data/cityscapes/leftImg8bit/test paths.output=RUN)",
    )
    export.add_argument("benchmark", choices=FORMATS, help="whose server the files are for")
    export.add_argument("labels", type=Path, help="folder of label PNGs: labels/ of a run of evaluate.py")
    export.add_argument("out", type=Path, help="folder of the files for the server")

    render = tool.command(
        "render",
        "protoseg.run.data:render",
        "Draw labelled street scenes: OUT/images, OUT/labels and OUT/classes.yaml, to be read with data=folder "
        "data.root=OUT. A run that was stopped goes on where it ended; a larger --count adds pictures. It needs "
        "pip install 'protoseg[render]'.",
        "--count 2000 --style dusk --labels cityscapes data/rendered",
    )
    render.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    render.add_argument("--count", type=int, default=100, help="pictures (default 100)")
    render.add_argument("--style", choices=STYLES, default="day", help="light and weather (default day)")
    render.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="pixels (default 640x480)")
    render.add_argument("--seed", type=int, default=0, help="the same seed draws the same streets (default 0)")
    render.add_argument("--labels", choices=LABELS, default="camvid", help="label space (default camvid)")
    render.add_argument("--workers", type=int, help="processes (default: one per core)")
    tool.main(arguments)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ArgumentTypeError(f"expected WIDTHxHEIGHT, e.g. 640x480, got {text!r}")
    return int(width), int(height)
