"""What a session starts from: a checkpoint, or an encoder by the name of its file in conf/encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from examples.labelling_page.clicks import Session
from examples.labelling_page.evidence import blank_file
from protoseg.evaluation.predictor import choose_device
from protoseg.run.build import plain
from protoseg.run.config import composed
from protoseg.trained import open_file


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
