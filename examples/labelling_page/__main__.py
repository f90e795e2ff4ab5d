"""Label a folder of images by teaching: a page on this machine to click on (docs/label.md)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.labelling_page.network import session
from protoseg.run.config import run_with_clear_errors
from protoseg.text import program, say
from protoseg.types import ProtosegError, require


def page(chosen: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    require("page", "aiohttp")
    from examples.labelling_page.server import serve

    places, encoder = chosen.places, chosen.encoder
    if len(places) != (2 if encoder is None else 1):
        wanted = "a checkpoint and a folder of images" if encoder is None else "a folder of images beside --encoder"
        raise ProtosegError(f"expected {wanted}, got {', '.join(map(str, places))}: give these")
    network, images = encoder or str(places[0].absolute()), places[-1]
    out = chosen.out or images.absolute().with_name(f"{images.absolute().stem}_labels")
    made = session(network, encoder is not None, images, out, chosen.trust, chosen.device, chosen.read_only)
    if encoder is None and made.file.statistics() is None:
        say(
            f"{places[0]} has no statistics of its training images, without which clicks on a new class may find "
            f"nothing of it: {program('teach', 'statistics', str(places[0]), '--out', 'FILE')} makes them",
            stderr=True,
        )
    try:
        serve(made, chosen.port, not chosen.no_open)
    finally:
        made.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m examples.labelling_page``."""
    parser = argparse.ArgumentParser(prog="python -m examples.labelling_page", description=__doc__)
    parser.add_argument(
        "places", nargs="+", type=Path, metavar="PATH", help="the checkpoint, and the folder; with --encoder the folder"
    )
    parser.add_argument(
        "--encoder", metavar="NAME", help="begin with a file of conf/encoder, e.g. tf_efficientnet_lite0"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of labels, clicks and model; beside the images unless said"
    )
    parser.add_argument("--port", type=int, default=0, help="any that is free unless said")
    parser.add_argument("--read-only", action="store_true", help="show, and change nothing")
    parser.add_argument("--no-open", action="store_true", help="print the address alone")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="that a checkpoint may build from"
    )
    parser.add_argument("--device", help="cpu, cuda, …; the fastest there is unless said")
    chosen = parser.parse_args(arguments)
    run_with_clear_errors(lambda: page(chosen), "evaluate")


if __name__ == "__main__":
    main()
