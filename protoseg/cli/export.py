"""``protoseg export``: a checkpoint becomes an ONNX file, compared with the model it was made from."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from protoseg.cli.tool import add_trust, call


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``protoseg export``; ends with exit code 1 and one message at wrong input."""
    parser = ArgumentParser(
        prog="protoseg export",
        description="Write a checkpoint's model, prototypes included, as ONNX. Input: uint8 RGB images, b 3 h w. "
        "Outputs: class ids b h w, and logits on the decoder's grid. The file is compared with the model on random "
        "images.",
    )
    parser.add_argument("checkpoint", help="RUN/checkpoints/best.ckpt, a saved model's folder, or hf://user/name")
    parser.add_argument("out", type=Path, help="the file to write, e.g. model.onnx")
    text = "for images of one size; without it any multiples of 32"
    parser.add_argument("--size", type=_size, metavar="HEIGHTxWIDTH", help=text)
    parser.add_argument("--network", default="student", help="student, or of domain adaptation teacher")
    add_trust(parser)
    call("protoseg.run.export:export", vars(parser.parse_args(arguments)), "evaluate")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ArgumentTypeError(f"expected HEIGHTxWIDTH, e.g. 512x1024, got {text!r}")
    return int(height), int(width)
