"""Label a folder of images by teaching: ``protoseg teach page`` and ``protoseg teach replay`` (docs/label.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from protoseg.checkpoint import save_checkpoint
from protoseg.evaluation.predictor import choose_device
from protoseg.run.build import plain
from protoseg.run.config import composed
from protoseg.text import program, say
from protoseg.trained import open_file
from protoseg.types import ProtosegError

from .clicks import Session
from .evidence import blank_file
from .server import serve


def page(
    places: Sequence[Path],
    encoder: str | None,
    out: Path | None,
    port: int,
    read_only: bool,
    show: bool,
    trust: Sequence[str],
    device: str | None,
) -> None:
    """Serve the page until Ctrl-C."""
    if len(places) != (2 if encoder is None else 1):
        wanted = "a checkpoint and a folder of images" if encoder is None else "a folder of images beside --encoder"
        raise ProtosegError(f"expected {wanted}, got {', '.join(map(str, places))}: give these")
    network, images = encoder or str(places[0].absolute()), places[-1]
    whole = images.absolute()  # of a folder dots are a part of the name
    out = out or whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}_labels")
    made = session(network, encoder is not None, images, out, trust, device, read_only)
    if encoder is None and made.file.statistics() is None:
        say(
            f"{places[0]} has no statistics of its training images, without which clicks on a new class may find "
            f"nothing of it: {program('teach', 'statistics', str(places[0]), '--out', 'FILE')} makes them",
            stderr=True,
        )
    try:
        serve(made, port, show)
    finally:
        made.close()


def replay(clicks: Path, trust: Sequence[str], out: Path, device: str | None) -> None:
    """Write the checkpoint that a session's clicks taught; raises ProtosegError for another file."""
    try:
        head = json.loads(clicks.read_bytes().split(b"\n")[0])
        of = head["network"], head["blank"], Path(head["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{clicks}: expected the clicks of a labelling page, got another file ({error!r})"
        raise ProtosegError(f"{text}: give clicks.jsonl of its folder") from error
    made = session(*of, clicks, trust, device, True)
    save_checkpoint(made.content(), out)
    made.close()
    say(f"{made.space.num_classes} classes of {len(made.actions)} actions: {out}")


def session(
    network: str,
    blank: bool,
    images: Path,
    out: Path,
    trust: Sequence[str] = (),
    device: str | None = None,
    read_only: bool = False,
) -> Session:
    """Clicks on images that teach a checkpoint, or, ``blank``, an encoder of conf/."""
    if not blank:
        return Session(open_file(network, trust), images, out, read_only, choose_device(device))
    made = composed("train", [f"encoder={network}"]).encoder
    section = plain(made) | {"freeze": True} | ({"pyramid_channels": None} if "pyramid_channels" in made else {})
    file = blank_file(network, section, instantiate(section, _convert_="all"))
    return Session(file, images, out, read_only, choose_device(device))
