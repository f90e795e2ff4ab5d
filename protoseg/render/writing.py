"""Many rendered streets on disk, by several processes, in the layout of ``data=folder``."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.files import write_file
from protoseg.render.camera import photograph
from protoseg.render.engine import Renderer, missing_panda3d
from protoseg.render.labels import FORMATS
from protoseg.render.street import draw_street
from protoseg.render.weather import STYLES, draw_weather
from protoseg.types import ProtosegError

_SIDES = (64, 4096)


@dataclass(frozen=True)
class RenderSettings:
    """What decides every pixel of picture i; written to ``render.json``.

    Args:
        style: ``day``, ``dusk``, ``fog`` or ``rain``. Streets are the same in all of them.
        width, height: in pixels.
        seed: streets are the same for the same seed.
        labels: ``camvid`` (11 classes) or ``cityscapes`` (19 train ids).
        version: counts changes of the renderer that change pixels.

    Raises:
        ProtosegError: a value outside these.
    """

    style: str = "day"
    width: int = 640
    height: int = 480
    seed: int = 0
    labels: str = "camvid"
    version: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (("style", self.style, STYLES), ("labels", self.labels, (*FORMATS,))):
            if value not in known:
                raise ProtosegError(f"render: expected {name} out of {', '.join(known)}, got {value!r}")
        if not all(_SIDES[0] <= side <= _SIDES[1] for side in (self.width, self.height)):
            raise ProtosegError(
                f"render: expected a size with sides from {_SIDES[0]} to {_SIDES[1]} pixels, "
                f"got {self.width}x{self.height}"
            )
        if self.seed < 0:
            raise ProtosegError(f"render: expected a seed of 0 or more, got {self.seed}")


def render_sample(settings: RenderSettings, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture ``index``, RGB ``h w 3``, and its ids in the label space of ``settings``, ``h w``.

    Both depend on the settings and ``index`` alone (with one version of the OpenGL driver).

    Raises:
        ProtosegError: see ``Renderer``.
    """
    place, air, lens = (np.random.default_rng([settings.seed, index, stage]) for stage in range(3))
    weather = draw_weather(air, settings.style)
    street = draw_street(place, lit=weather.lamps > 0)
    drift = (float(air.uniform()), float(air.uniform()))
    picture, labels = _renderer(settings.width, settings.height).draw(street, weather, drift)
    return photograph(lens, picture, weather), FORMATS[settings.labels].table[labels]


def render_dataset(folder: Path, count: int, settings: RenderSettings, workers: int) -> Iterator[int]:
    """Write pictures 0 to ``count`` - 1 to ``folder``; yields how many are there, first those of an earlier run.

    ``images/NNNNNN.jpg``, ``labels/NNNNNN.png`` and ``classes.yaml``: ``LabelledFolder`` reads them.

    Args:
        workers: processes that draw, 1 for this one; the files are the same for any number.

    Raises:
        ProtosegError: Panda3D or OpenGL is missing, a folder with pictures of other settings, or a full disk.
    """
    if count < 1 or workers < 1:
        raise ProtosegError(f"render: expected at least 1 picture and 1 worker, got {count} and {workers}")
    if find_spec("panda3d") is None:
        raise missing_panda3d("it is not installed")
    _claim(folder, settings)
    todo = [index for index in range(count) if not all(path.exists() for path in _paths(folder, index))]
    yield count - len(todo)
    if not todo:
        return
    draw = partial(_write, folder, settings)
    if workers == 1:
        yield from (done for done, _ in enumerate(map(draw, todo), start=count - len(todo) + 1))
        return
    # A fresh interpreter per worker: OpenGL does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_start_worker)
    try:
        for done, _ in enumerate(pool.map(draw, todo), start=count - len(todo) + 1):
            yield done
    finally:
        pool.shutdown(cancel_futures=True)


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / "images" / f"{index:06}.jpg", folder / "labels" / f"{index:06}.png"


def _claim(folder: Path, settings: RenderSettings) -> None:
    """Write the settings and the classes, or see that they are those of the pictures there."""
    record = folder / "render.json"
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ProtosegError(f"{record}: expected the settings of its pictures, got {error}: remove it") from error
        if found != asdict(settings):
            raise ProtosegError(
                f"{folder}: expected pictures of {_listed(asdict(settings))}, got ones of {_listed(found)}: "
                "choose another folder, or the same settings"
            )
        return
    if any((folder / name).exists() for name in ("images", "labels", "masks", "classes.yaml")):
        raise ProtosegError(f"{folder}: expected a new folder or one of the renderer, got other files: choose another")
    label_space, _, void = FORMATS[settings.labels]
    lines = [f"name: {label_space.name}", "classes:"]
    pairs = zip(label_space.classes, label_space.colors, strict=True)
    lines += [f"  {name}: {list(color)}" for name, color in pairs]
    lines += [f"void: [{void}]", f"things: [{', '.join(label_space.things)}]", ""]
    write_file(folder / "classes.yaml", lambda path: path.write_text("\n".join(lines), encoding="utf-8"))
    write_file(record, lambda path: path.write_text(json.dumps(asdict(settings), indent=1), encoding="utf-8"))


def _listed(settings: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in settings.items()) if isinstance(settings, dict) else repr(settings)


def _write(folder: Path, settings: RenderSettings, index: int) -> None:
    picture, label = render_sample(settings, index)
    image_path, label_path = _paths(folder, index)
    write_file(image_path, lambda path: Image.fromarray(picture).save(path, quality=92))
    write_file(label_path, lambda path: Image.fromarray(label).save(path))


def _start_worker() -> None:
    """One core per worker: neither Mesa nor OpenCV starts threads of its own."""
    os.environ.setdefault("LP_NUM_THREADS", "1")
    cv2.setNumThreads(1)


@lru_cache(maxsize=1)
def _renderer(width: int, height: int) -> Renderer:
    return Renderer(width, height)
