"""Prediction of folders, single images, videos and folders that grow; resumption."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from protoseg.data.channels import ImageReader
from protoseg.data.video import Video, VideoWriter
from protoseg.evaluation.predict import predict
from protoseg.evaluation.predictor import Predictor
from protoseg.types import LabelSpace, ProtosegError, SegOutput

SPACE = LabelSpace("toy", ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class Strongest(nn.Module):
    """Calls a pixel by its strongest channel, and counts the images that it sees."""

    stride = 1
    num_classes = 3
    seen = 0

    def forward(self, image: Tensor) -> SegOutput:
        assert not self.training
        self.seen += len(image)
        return SegOutput(image.float(), image.float())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of two sizes in two folders."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name, size in (("a/0.png", (24, 40)), ("a/1.png", (17, 33)), ("b/0.png", (24, 40))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST).save(folder / name)
    return folder


def run(model: Strongest, source: Path, output: Path, **options: Any) -> Any:
    return predict(model, source, options.pop("predictor", Predictor()), SPACE, output, "cpu", **options)


def strongest(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).argmax(2)


def test_images_of_16_bits_as_in_the_training(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint16)
    pixels[..., 1] = 200  # blue, green, red; the high bits of all are 0
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in" / "a.png"), pixels)
    for given, label in ((None, 0), ((0.0, 1023.0), 1)):
        run(Strongest(), tmp_path / "in", tmp_path / str(label), reader=ImageReader(image_range=given))
        assert (np.asarray(Image.open(tmp_path / str(label) / "labels" / "a.png")) == label).all()


def test_the_next_image_is_read_and_the_last_written_meanwhile(images: Path, tmp_path: Path) -> None:
    read: list[Path] = []
    second = threading.Event()

    class Reader(ImageReader):
        def read(self, path: Path, turn: bool = True) -> np.ndarray:
            read.append(path)
            second.set() if len(read) == 2 else None
            return super().read(path, turn)

    class Waiting(Strongest):
        def forward(self, image: Tensor) -> SegOutput:
            assert second.wait(20)  # with the first image at hand, the second is being read
            assert len(read) <= self.seen + 2  # and no more are held, however long it takes
            return super().forward(image)

    outcome = run(Waiting(), images, tmp_path / "out", reader=Reader())
    assert len(read) == 3
    assert all(path.is_file() for path in outcome.written)
    assert len(outcome.written) == 6


def test_a_file_that_cannot_be_written_ends_it(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").write_text("in the way")
    with pytest.raises(ProtosegError, match="labels"):
        run(Strongest(), images, tmp_path / "out")


def test_a_folder(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Strongest().train()
    outcome = run(model, images, tmp_path / "out")
    assert sorted(outcome.written) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert len(outcome.written) == 6
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        label = Image.open(tmp_path / "out" / "labels" / name)
        assert label.mode == "P"
        assert np.array_equal(np.asarray(label), strongest(images / name))
    assert Image.open(tmp_path / "out" / "overlays" / "a" / "1.jpg").size == (33, 17)
    assert "3 images predicted" in capsys.readouterr().out
    assert model.training


def test_one_image_and_windows_for_large_ones(images: Path, tmp_path: Path) -> None:
    outcome = run(
        Strongest(), images / "a" / "1.png", tmp_path, predictor=Predictor("slide", crop_size=8), save=["labels"]
    )
    assert outcome.written == [tmp_path / "labels" / "1.png"]
    assert np.array_equal(np.asarray(Image.open(outcome.written[0])), strongest(images / "a" / "1.png"))


def test_a_stopped_run_goes_on_where_it_was(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Strongest(), images, tmp_path / "out")
    (tmp_path / "out" / "overlays" / "a" / "1.jpg").unlink()
    model = Strongest()
    outcome = run(model, images, tmp_path / "out")
    assert (model.seen, outcome.skipped) == (1, 2)
    assert {path.name for path in outcome.written} == {"1.png", "1.jpg"}
    assert "1 images predicted, 2 had been before (overwrite=true" in capsys.readouterr().out
    again = Strongest()
    assert run(again, images, tmp_path / "out", overwrite=True).skipped == 0
    assert again.seen == 3


def test_bad_files_are_named_at_the_end_and_a_second_run_does_the_rest(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (images / "a" / "0.png").read_bytes()
    (images / "a" / "0.png").write_bytes(b"not an image")
    (images / "a" / "1.png").write_bytes(whole[:-20])
    expected = rf"2 image\(s\) could not be predicted \(named above\), all others are in {tmp_path / 'out'}: mend"
    with pytest.raises(ProtosegError, match=expected):
        run(Strongest(), images, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"image {images / 'a' / name}" for name in ("0.png", "1.png")]
    assert [path.name for path in (tmp_path / "out" / "labels").rglob("*.png")] == ["0.png"]
    (images / "a" / "0.png").write_bytes(whole)
    (images / "a" / "1.png").unlink()
    model = Strongest()
    assert run(model, images, tmp_path / "out").skipped == 1
    assert model.seen == 1


def test_images_of_other_formats_are_counted(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.heic", "b/y.AVIF", "notes.txt"):
        (images / name).write_bytes(b"")
    run(Strongest(), images, tmp_path / "out")
    said = capsys.readouterr().out
    assert "left out: 2 image(s) of formats that are not read (y.AVIF, x.heic): convert them to PNG" in said
    assert "3 images predicted" in said
    only = tmp_path / "only"
    only.mkdir()
    (only / "x.dng").write_bytes(b"")
    for place in (only, only / "x.dng"):
        with pytest.raises(ProtosegError, match=r"expected a folder with .*1 image\(s\) of formats .*\(x\.dng\)"):
            run(Strongest(), place, tmp_path / "out")


def test_an_image_that_the_network_cannot_take(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Picky(Strongest):
        def forward(self, image: Tensor) -> SegOutput:
            if self.seen == 0:
                self.seen += 1
                raise ValueError("Expected more than 1 value per channel\nwhen training")
            return super().forward(image)

    with pytest.raises(ProtosegError, match=r"1 image\(s\) could not be predicted"):
        run(Picky(), images, tmp_path / "out")
    assert "the network cannot take its pixels (Expected more than 1 value" in capsys.readouterr().err


def test_a_folder_that_grows(images: Path, tmp_path: Path) -> None:
    (images / "a" / "bad.png").write_bytes(b"not an image")
    os.utime(images / "a" / "bad.png", (1e9, 1e9))

    def arrive() -> None:
        time.sleep(0.6)
        partial = images / ".new.png"
        Image.new("RGB", (8, 8), (0, 0, 255)).save(partial)
        old = time.time() - 5
        os.utime(partial, (old, old))
        partial.rename(images / "late.png")

    thread = threading.Thread(target=arrive)
    thread.start()
    with pytest.raises(ProtosegError, match=r"1 image\(s\) could not be predicted"):
        run(Strongest(), images, tmp_path / "out", follow=1.7, save=["labels"])
    thread.join()
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 4
    assert (np.asarray(Image.open(tmp_path / "out" / "labels" / "late.png")) == 2).all()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames: red, green, blue, red, green."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10.0) as writer:
        for i in range(5):
            writer.write(np.eye(3, dtype=np.uint8)[np.full((32, 48), i % 3)] * 200 + 20)
    return path


def test_pictures_with_longer_sides_than_a_jpeg_may_have(tmp_path: Path) -> None:
    from protoseg.evaluation.writer import jpeg

    jpeg(np.zeros((3, 70_000, 3), np.uint8))(tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").size == (65_500, 3)


def test_a_video(clip: Path, tmp_path: Path) -> None:
    outcome = run(Strongest(), clip, tmp_path / "out")
    labels = sorted((tmp_path / "out" / "labels" / "clip").iterdir())
    assert [path.name for path in labels] == [f"{i:06d}.png" for i in range(5)]
    assert [int(np.asarray(Image.open(path))[16, 24]) for path in labels] == [0, 1, 2, 0, 1]
    shown = Video(tmp_path / "out" / "overlays" / "clip.mp4")
    assert (shown.num_frames, shown.rate) == (5, 10.0)
    assert [int(frame.mean((0, 1)).argmax()) for frame in shown] == [0, 1, 2, 0, 1]
    assert len(outcome.written) == 6
    assert not list((tmp_path / "out").rglob("*partial*"))


def test_a_stopped_video_goes_on_with_what_is_written(clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    class Stops(Strongest):
        def forward(self, image: Tensor) -> SegOutput:
            if self.seen == 3:
                raise KeyboardInterrupt
            return super().forward(image)

    with pytest.raises(KeyboardInterrupt):
        run(Stops(), clip, output)
    assert len(list((output / "labels" / "clip").iterdir())) == 3
    assert not list((output / "overlays").iterdir())  # a video is there as a whole or not at all
    model = Strongest()
    outcome = run(model, clip, output)
    assert (model.seen, outcome.skipped) == (2, 3)
    assert [int(frame.mean((0, 1)).argmax()) for frame in Video(output / "overlays" / "clip.mp4")] == [0, 1, 2, 0, 1]
    done = Strongest()
    assert run(done, clip, output).skipped == 5
    assert done.seen == 0
    assert run(done, clip, output, overwrite=True).skipped == 0
    assert done.seen == 5


def test_wrong_input(images: Path, clip: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.txt").write_text("")
    for place in (empty, tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(ProtosegError, match="expected a folder with images"):
            run(Strongest(), place, tmp_path / "out")
    with pytest.raises(ProtosegError, match=r"none.mp4: expected a file that can be played"):
        run(Strongest(), tmp_path / "none.mp4", tmp_path / "out")
    with pytest.raises(ProtosegError, match="got overlays, panels, and panels need a truth"):
        run(Strongest(), images, tmp_path / "out", save=["overlays", "panels"])
    for place, follow in ((clip, 3.0), (images, 0.0)):
        with pytest.raises(ProtosegError, match="follow: expected a number of seconds above 0 and a folder"):
            run(Strongest(), place, tmp_path / "out", follow=follow)
    model = Strongest()
    model.num_classes = 19
    with pytest.raises(ProtosegError, match="expected a model of the 3 classes"):
        run(model, images, tmp_path / "out")
