"""Video files as streams of frames, and streams of frames as video files."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from protoseg.types import ProtosegError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class Video:
    """The frames of a video file, any that OpenCV's FFmpeg reads, one at a time.

    ``num_frames`` is as the file says (some say too much or nothing, 0), ``rate`` in frames per second. Raises
    ProtosegError: a file that is not there or is no video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        capture = self._open()
        self.num_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else 25.0  # some files do not tell

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """RGB ``h w 3``, in the order of the file."""
        capture = self._open()  # which closes the file when it is collected
        while (frame := capture.read()[1]) is not None:
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _open(self) -> Any:
        capture = cv2.VideoCapture(str(self.path))
        if not self.path.is_file() or not capture.isOpened():
            got = "one that cannot be read" if self.path.is_file() else "none"
            wanted = f"a file that can be played ({', '.join(VIDEO_SUFFIXES)})"
            raise ProtosegError(f"video {self.path}: expected {wanted}, got {got}: convert it: ffmpeg -i FILE new.mp4")
        return capture


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes frames to an ``.mp4`` (MPEG-4), ``rate`` per second, in a ``with`` block; ProtosegError if it cannot."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._writer: Any = None

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, RGB ``h w 3``; all must be of one size."""
        if self._writer is None:
            height, width = frame.shape[:2]
            fourcc = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
            self._writer = cv2.VideoWriter(str(self.path), fourcc, self.rate, (width, height))
            if not self._writer.isOpened():
                raise ProtosegError(f"cannot write the video {self.path}: set save=[labels] to do without it")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
