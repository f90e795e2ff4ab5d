"""``protoseg convert``: a published file becomes a checkpoint."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from protoseg.cli.tool import call


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg convert``; ends with exit code 1 and one message at wrong input."""
    parser = ArgumentParser(
        prog="protoseg convert",
        description="Write published weights (DAFormer, HRDA, MIC, ProtoSeg, SegFormer) as a checkpoint that all "
        "commands open; ImageNet weights as a file for encoder.weights=. The kind is recognised by the names in the "
        "file, of which nothing is run.",
    )
    parser.add_argument("file", type=Path, help="e.g. latest.pth")
    parser.add_argument("out", type=Path, help="the checkpoint to write, e.g. daformer.ckpt")
    parser.add_argument("--network", default="student", help="student, or of domain adaptation teacher")
    text = "settings as of train.py, e.g. data=cityscapes_to_acdc"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    call("protoseg.run.convert:run_convert", vars(parser.parse_intermixed_args(arguments)), "train")
