"""Predict plain images, georeferenced ones by windows, videos, and folders that images are still coming into."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoseg.data.channels import ImageReader, check_numbers
from protoseg.data.decoding import FAILURES, geotiff, open_picture, to_bytes
from protoseg.data.files import reading
from protoseg.data.label_spaces import file_ignored
from protoseg.data.own import ImageFolder
from protoseg.data.pairing import list_images, other_formats
from protoseg.data.video import VIDEO_SUFFIXES, Video, VideoWriter
from protoseg.distributed import rank, world_size
from protoseg.evaluation.pictures import Picture, overlay
from protoseg.evaluation.predictor import Box, Predictor, evaluating
from protoseg.evaluation.writer import PictureWriter, check_model, jpeg, output_names, progress_bar
from protoseg.text import say
from protoseg.types import LabelSpace, ProtosegError

SAVES = ("overlays", "labels")
SETTLED = 1.0  # seconds: an image that was changed later may still be written
POLL = 0.5  # seconds between two looks into a folder
SIDE = 4096  # pixels of an overlay's longer side at most: of a larger image every second pixel, every third, …
_RGB = ("red", "green", "blue")


@dataclass(eq=False)
class Writer(PictureWriter):
    """Predicts an image after the other, with a model in eval mode on the device, and writes what is wanted of it."""

    model: nn.Module
    predictor: Predictor
    device: torch.device | str
    overwrite: bool
    predicted: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)  # images (or frames) that had been predicted before
    failed: list[str] = field(default_factory=list, init=False)  # why, one line for each image
    started: float = field(default_factory=time.perf_counter, init=False)

    def is_done(self, name: Path) -> bool:
        """Whether all that is wanted of an image is there."""
        paths = [self.path(kind, name) for kind in self.save]
        return not self.overwrite and all(path.is_file() or path.with_suffix(".tif").is_file() for path in paths)

    def predict(self, image: Tensor, name: Path | None = None) -> Tensor:
        """Label map ``h w`` of ``c h w``, on the CPU; writes the probabilities of ``name`` if they are wanted."""
        batch, size = image[None].to(self.device), torch.tensor([image.shape[1:]])
        if name is None or "probabilities" not in self.save:
            return self.predictor.predict(self.model, batch, size)[0].cpu()
        (scores,) = self.predictor(self.model, batch, size)
        self.put(self.path("probabilities", name), partial(np.save, arr=scores.half().cpu().numpy()))
        return scores.argmax(0).cpu()

    def rate(self) -> str:
        """Images predicted per second, in words."""
        return "" if self.predicted == 0 else f"{self.predicted / (time.perf_counter() - self.started):.1f} images/s"


def predict(
    model: nn.Module,
    images: str | Path,
    predictor: Predictor,
    label_space: LabelSpace,
    output: str | Path,
    device: torch.device | str,
    save: Sequence[str] = SAVES,
    overwrite: bool = False,
    follow: float | None = None,
    reader: ImageReader | None = None,
) -> Writer:
    """Predict a folder of images (subfolders included), one image, or a video, without truth.

    Writes into ``output``, for images, ``labels/NAME.png`` (class ids, see ``label_png``), ``overlays/NAME.jpg`` and
    ``probabilities/NAME.npy`` (fp16 ``c h w``); for a georeferenced TIFF, which is read and written by windows,
    ``labels/NAME.tif`` in the same place; for a video, ``labels/NAME/000000.png``, … and ``overlays/NAME.mp4``.
    Images that cannot be read are named at the end; what is there is left out, so that a stopped run goes on.

    The model is used as by ``evaluate``. What is written is out of ``SAVES`` and, of images, ``probabilities``; with
    ``overwrite`` what is there is predicted again; with ``follow`` it goes on with the images that come into a folder,
    until for so many seconds none came. ``reader`` is of the training. Returns the writer, which says what it has
    ``written``, and how many images or frames were ``skipped``. Raises ProtosegError: nothing to predict, a file that
    cannot be written, or settings that do not fit; after all others are predicted, images that could not be read.
    """
    check_model(model, label_space)
    place = Path(images)
    is_video = place.suffix.lower() in VIDEO_SUFFIXES and not place.is_dir()
    known = SAVES if is_video else (*SAVES, "probabilities")
    if not set(save) <= set(known) or not save:
        panels = ", and panels need a truth to compare with" if "panels" in save else ""
        got = ", ".join(save) or "nothing"
        raise ProtosegError(f"save: expected {' or '.join(known)} to predict, got {got}{panels}")
    if follow is not None and (follow <= 0 or not place.is_dir()):
        raise ProtosegError(f"follow: expected a number of seconds above 0 and a folder, got {follow} and {images}")
    writer = Writer(Path(output), label_space, save, model.to(device), predictor, device, overwrite)
    with evaluating(model):
        _video(writer, place) if is_video else _images(writer, place, follow, reader)
    if rank() == 0:
        before = f", {writer.skipped} had been before (overwrite=true predicts them again)" if writer.skipped else ""
        say(f"{writer.predicted} {'frames' if is_video else 'images'} predicted{before}: {writer.output}")
    for reason in writer.failed:
        say(reason, stderr=True)
    if writer.failed:
        text = f"{len(writer.failed)} image(s) could not be predicted (named above), all others are in {output}"
        raise ProtosegError(f"{text}: mend or move these; the same command in that folder (hydra.run.dir) goes on")
    return writer


def _images(writer: Writer, place: Path, follow: float | None, reader: ImageReader | None) -> None:
    reader = reader or ImageReader()
    if rank() == 0 and (others := other_formats(place)):
        say(f"left out: {others}")
    seen: list[Path] = []

    def read(path: Path) -> Tensor | None:  # None: an image that is read by windows
        with opened(path, reader) as geo:
            return _tensor(reader.read(path)) if geo is None else None

    with progress_bar() as progress, ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(1) as writers:
        task, writing = progress.add_task("predicting", total=0, rate=""), Future[None]()
        writing.set_result(None)
        for paths in _arrivals(place, writer.label_space, follow):
            paths = reader.first(paths)
            seen = sorted([*seen, *paths])
            names = output_names([str(path) for path in seen], place if place.is_dir() else place.parent)
            mine = paths[rank() :: world_size()]
            todo = [path for path in mine if not writer.is_done(names[str(path)])]
            writer.skipped += len(mine) - len(todo)
            progress.update(task, total=writer.predicted + len(todo))
            for path, image_read in _one_ahead(readers, read, todo):
                name = names[str(path)]
                try:
                    image = image_read.result()
                    if image is not None:
                        prediction = writer.predict(image, name)
                    elif "probabilities" in writer.save:
                        text = f"image {path}: expected save=[labels] or [overlays] of a georeferenced TIFF"
                        raise ProtosegError(f"{text}, which is read by windows, got probabilities; leave them out")
                    else:
                        with opened(path, reader) as geo:
                            cast(GeoImage, geo).predict(writer, name)
                except (RuntimeError, ValueError) as error:  # a norm over one cell, a window of 0, memory of a GPU
                    reason = " ".join(str(error).split())
                    if not isinstance(error, ProtosegError):
                        reason = f"image {path}: the network cannot take its pixels ({reason[:200]})"
                    writer.failed.append(reason)
                    continue
                writing.result()  # raises what went wrong
                if image is not None:
                    writing = writers.submit(writer.write, name, image, None, prediction)
                writer.predicted += 1
                progress.update(task, completed=writer.predicted, rate=writer.rate())
            writing.result()  # what came is whole before more is waited for


def _one_ahead(thread: ThreadPoolExecutor, read: Callable[[Path], Any], paths: list[Path]) -> Iterator[Any]:
    """Each path and the future of its image; the next is read while this one is used, no more, to bound memory."""
    coming = (thread.submit(read, path) for path in paths)
    ahead = next(coming, None)
    for path in paths:
        current, ahead = ahead, next(coming, None)
        yield path, current


def _arrivals(place: Path, label_space: LabelSpace, follow: float | None) -> Iterator[list[Path]]:
    """All images of a place; with ``follow``, then those that come until for so many seconds none came."""
    if follow is None:
        yield [path for path, _ in ImageFolder(place, label_space).samples]
        return
    seen: set[Path] = set()
    last = time.monotonic()
    while time.monotonic() - last < follow:
        found = [path for path in list_images(place, recursive=True) if path not in seen]
        settled = [path for path in found if time.time() - path.stat().st_mtime >= SETTLED]
        if settled:
            seen |= set(settled)
            yield settled
        if found:
            last = time.monotonic()
        if not settled:
            time.sleep(POLL)


def _video(writer: Writer, path: Path) -> None:
    video, target = Video(path), writer.output / "overlays" / f"{path.stem}.mp4"

    def run(show: Callable[[Picture], object] | None) -> None:
        with progress_bar() as progress:
            task, index = progress.add_task("predicting", total=video.num_frames or None, rate=""), -1
            for index, frame in enumerate(video):
                image, labels = _tensor(frame), writer.output / "labels" / path.stem / f"{index:06d}.png"
                known = labels.is_file() and not writer.overwrite
                writer.skipped += known
                if not known or show is not None:
                    kept = np.asarray(open_picture(labels), np.int64) if known else None  # read, it is closed
                    prediction = writer.predict(image) if kept is None else torch.from_numpy(kept)
                    writer.predicted += not known
                    if not known and "labels" in writer.save:
                        writer.write_labels(labels, prediction)
                    if show is not None:
                        show(overlay(image, prediction, writer.label_space))
                progress.update(task, completed=index + 1, rate=writer.rate())
        if index < 0:
            raise ProtosegError(f"video {path}: expected frames, got none to be read: convert it, e.g. with ffmpeg")
        if index + 1 < video.num_frames:
            say(f"{path}: {index + 1} of the {video.num_frames} frames that it promises could be read")

    def show_all(partial: Path) -> None:
        with VideoWriter(partial, video.rate) as film:
            run(film.write)

    if "overlays" in writer.save and (writer.overwrite or not target.is_file()):
        writer.put(target, show_all)
    elif "labels" in writer.save:
        run(None)
    else:
        writer.skipped = video.num_frames


def _tensor(picture: np.ndarray) -> Tensor:
    """``h w c`` to ``c h w``, of the same memory where it may be written to."""
    return torch.from_numpy(np.require(picture, requirements="W")).permute(2, 0, 1)


@contextmanager
def opened(path: Path, reader: ImageReader) -> Iterator["GeoImage | None"]:
    """The image as it is read by windows, None where it is not georeferenced; raises as ``ImageReader.read``."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        yield None
        return
    with ExitStack() as stack:
        files: list[Any] = []
        with suppress(*FAILURES):  # no rasterio, or perhaps of a kind that Pillow knows; else that says why
            files = [stack.enter_context(geotiff(file)) for file in reader.files(path)]
        placed = files and (files[0].crs is not None or not files[0].transform.is_identity)
        yield GeoImage(path, reader, files) if placed else None


class GeoImage:
    """An image in open files of rasterio's, one or one for each band."""

    def __init__(self, path: Path, reader: ImageReader, files: list[Any]) -> None:
        self.path, self.reader, self.files = path, reader, files
        self.size = self.height, self.width = files[0].shape
        colors = tuple(color.name for color in files[0].colorinterp)
        plain = colors in (_RGB, (*_RGB, "alpha")) and files[0].dtypes[0] in ("uint8", "uint16")  # else a palette, …
        self.whole = None if reader.channels or plain else reader.read(path, turn=False)

    def read(self, box: Box) -> NDArray[Any]:
        """A window, as ``ImageReader.read`` gives the whole; raises as that."""
        if self.whole is not None:
            return self.whole[box]
        chosen = None if self.reader.channels else [1, 2, 3]
        with reading(self.path, "image"):
            pixels = np.concatenate([file.read(chosen, window=box) for file in self.files]).transpose(1, 2, 0)
        if self.reader.channels:
            check_numbers(pixels, self.reader.channels, self.path)
            return self.reader.scaled(pixels, f"image {self.path}")
        return pixels if pixels.dtype == np.uint8 else to_bytes(pixels, next(iter(self.reader.ranges), None))

    def predict(self, writer: Writer, name: Path) -> None:
        """Write what is wanted: ``labels/NAME.tif``, in the image's place, and ``overlays/NAME.jpg``."""
        space, step = writer.label_space, -(-max(self.size) // SIDE)
        picture = np.zeros((-(-self.height // step), -(-self.width // step), 3), np.uint8)
        ignored = file_ignored(space.num_classes)
        kind = np.min_scalar_type(ignored)

        def run(target: Any = None) -> None:
            for piece in writer.predictor.pieces(*self.size):
                rows, columns = (slice(p.start, min(p.stop, n)) for p, n in zip(piece.seen, self.size, strict=True))
                image = torch.from_numpy(self.read((rows, columns)).copy()).permute(2, 0, 1)
                label = writer.predict(image)[piece.inner]
                if target:
                    target.write(label.numpy().astype(kind), 1, window=piece.place)
                thin: Any = tuple(slice(-part.start % step, None, step) for part in piece.place)
                if not label[thin].numel():  # narrower than a step
                    continue
                shown = image[:, piece.inner[0], piece.inner[1]][:, thin[0], thin[1]]
                tile = overlay(shown, label[thin], space)
                y, x = (-(-part.start // step) for part in piece.place)
                picture[y : y + tile.shape[0], x : x + tile.shape[1]] = tile

        def save(partial: Path) -> None:
            import rasterio

            profile = {"driver": "GTiff", "count": 1, "dtype": kind, "compress": "deflate", "nodata": ignored}
            profile |= {"height": self.height, "width": self.width, "tiled": True, "bigtiff": "if_safer"}
            profile |= {"crs": self.files[0].crs, "transform": self.files[0].transform}
            with rasterio.open(partial, "w", **profile) as target:
                if kind == np.uint8:
                    target.write_colormap(1, dict(enumerate(space.colors)))
                run(target)

        if "labels" in writer.save:
            writer.put(writer.path("labels", name).with_suffix(".tif"), save)
        else:
            run()
        if "overlays" in writer.save:
            writer.put(writer.path("overlays", name), jpeg(picture))
