"""Videos: what is written is read back, and what is no video is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protoseg.data.video import Video, VideoWriter
from protoseg.types import ProtosegError


def test_frames_come_back_in_order_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    colours = [(220, 30, 30), (30, 220, 30), (30, 30, 220)]
    with VideoWriter(path, 12.0) as writer:
        for colour in colours:
            writer.write(np.full((48, 64, 3), colour, np.uint8))
    video = Video(path)
    assert (video.num_frames, video.rate) == (3, 12.0)
    for _ in range(2):  # it can be gone through again
        frames = list(video)
        assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
        for frame, colour in zip(frames, colours, strict=True):
            assert np.abs(frame.mean((0, 1)) - colour).max() < 20


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_no_video(exists: bool, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    if exists:
        path.write_bytes(b"no video")
    with pytest.raises(ProtosegError, match=r"video .*clip.mp4: expected a file that can be played"):
        Video(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ProtosegError, match=r"cannot write the video .*save=\[labels\]"),
        VideoWriter(tmp_path / "none" / "clip.mp4", 25.0) as writer,
    ):
        writer.write(np.zeros((16, 16, 3), np.uint8))
