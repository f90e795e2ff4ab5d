"""Training images a second from JPEGs by the DataLoader: without and with worker processes, decoding in and out.

``decoded before``: the same images held in memory as arrays, so that what is left is augmentation and collation. The
last two rows say what a scaled decode (libjpeg gives 1/2 of the size for less work than the whole) could save.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch


class LoaderSetting(NamedTuple):
    """Sizes in pixels; the defaults are a phone's photo made small, and the crops of experiment=camvid_prototype."""

    width: int = 1280
    height: int = 960
    crop_height: int = 240
    crop_width: int = 320
    batch: int = 8
    images: int = 64

    def describe(self) -> str:
        s = self
        return f"{s.images} JPEGs of {s.width} x {s.height}, crops of {s.crop_width} x {s.crop_height}"


def loader_steps(setting: LoaderSetting, device: torch.device) -> dict[str, Callable[[], object]]:
    """Passes over all images by way, in memory first. On a CPU, whatever ``device`` is; one thread a process."""
    import cv2
    import simplejpeg

    from protoseg.data import Streets
    from protoseg.data.loading import Augmented, Loader
    from protoseg.data.transforms import TrainTransform

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    folder = tempfile.TemporaryDirectory()
    files = photos(setting, Path(folder.name))
    from_files, from_memory = Streets(), Streets()
    for data in (from_files, from_memory):
        data.samples = files
        data.transform = TrainTransform((setting.crop_height, setting.crop_width), (0.5, 2.0))
    decoded = [from_files.read(i) for i in range(len(files))]
    from_memory.read = decoded.__getitem__  # type: ignore[method-assign,assignment]
    seeds = count()

    def batches() -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(files), setting.batch):
            yield [(index, next(seeds)) for index in range(first, min(first + setting.batch, len(files)))]

    def over(data: Any, workers: int) -> Callable[[], object]:
        order = _Each(batches)
        loader = Loader(Augmented(data, None), workers, 0, batch_sampler=order)
        return lambda _=folder: [batch.image.shape for batch in loader]  # type: ignore[misc]

    read = [path.read_bytes() for path, _ in files]
    half = {"min_height": setting.height // 2, "min_width": setting.width // 2, "min_factor": 2}
    return {
        "decoded before": over(from_memory, 0),
        "0 workers": over(from_files, 0),
        "1 worker": over(from_files, 1),
        "2 workers": over(from_files, 2),
        "decoding alone": lambda: [simplejpeg.decode_jpeg(data) for data in read],
        "decoding at half size": lambda: [simplejpeg.decode_jpeg(data, **half) for data in read],
    }


class _Each:
    """Other batches at each pass."""

    def __init__(self, batches: Callable[[], Iterator[list[tuple[int, int]]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches()


def photos(setting: Any, folder: Path) -> list[tuple[Path, Path | None]]:
    """JPEGs of quality 92 with masks, from the built-in scenes, enlarged, with a camera's grain."""
    from PIL import Image

    from benchmarks.data import photo_like

    files: list[tuple[Path, Path | None]] = []
    for image, label in photo_like(setting, folder):
        path = image.with_suffix(".jpg")
        with Image.open(image) as picture:
            picture.save(path, quality=92)
        image.unlink()
        files.append((path, label))
    return files
