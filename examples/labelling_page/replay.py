"""Make the model that a page taught once more, of its clicks alone: ``python -m examples.labelling_page.replay``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from examples.labelling_page.network import session
from protoseg.checkpoint import save_checkpoint
from protoseg.run.config import run_with_clear_errors
from protoseg.text import say
from protoseg.types import ProtosegError


def replay(clicks: Path, trust: Sequence[str], out: Path, device: str | None) -> None:
    """Write the checkpoint that a session's clicks taught; raises ProtosegError for another file."""
    try:
        head = json.loads(clicks.read_bytes().split(b"\n")[0])
        of = head["network"], head["blank"], Path(head["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{clicks}: expected the clicks of examples.labelling_page, got another file ({error!r})"
        raise ProtosegError(f"{text}: give clicks.jsonl of its folder") from error
    made = session(*of, clicks, trust, device, True)
    save_checkpoint(made.content(), out)
    made.close()
    say(f"{made.space.num_classes} classes of {len(made.actions)} actions: {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``python -m examples.labelling_page.replay``."""
    parser = argparse.ArgumentParser(prog="python -m examples.labelling_page.replay", description=__doc__)
    parser.add_argument("clicks", type=Path, metavar="CLICKS", help="clicks.jsonl of a page's folder")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="that a checkpoint may build from"
    )
    parser.add_argument("--device", help="cpu, cuda, …; the fastest there is unless said")
    chosen = parser.parse_args(arguments)
    run_with_clear_errors(lambda: replay(chosen.clicks, chosen.trust, chosen.out, chosen.device), "evaluate")


if __name__ == "__main__":
    main()
