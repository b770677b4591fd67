"""Read and write video files with PyAV, frame by frame, so that memory does not grow with their length."""

import math
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import cv2
import numpy as np

from data.types import DataError

_TIMES = Fraction(1, 90000)  # seconds; unit of the times in written files, as in MPEG
_CODECS = ("libx264", "h264_videotoolbox", "libopenh264")


class Movie(NamedTuple):
    """An opened video. `frames` can be iterated only once."""

    total: int | None
    """Number of frames that the file names; None if it does not."""
    frames: Generator[tuple[Fraction, np.ndarray], None, None]
    """Time in seconds since the first frame, and the frame as a player shows it, HW3 uint8 RGB."""


def open_movie(path: Path) -> Movie:
    """Open a video. Frames are turned as the file asks, and keep their own times if the frame rate varies.

    Raises:
        DataError: the file is not a video, or PyAV is not installed; while iterating: the rest cannot be decoded.
    """
    av = _pyav(path)
    try:
        container: Any = av.open(str(path))
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: cannot be read as a video ({error})") from error
    stream.thread_type = "AUTO"

    def frames() -> Generator[tuple[Fraction, np.ndarray], None, None]:
        with container:
            first = before = None
            try:
                for frame in container.decode(stream):
                    time = None if frame.pts is None else frame.pts * Fraction(frame.time_base)
                    if time is None or (before is not None and time <= before):  # a damaged or missing time
                        time = Fraction(0) if before is None else before + 1 / Fraction(stream.average_rate or 25)
                    first, before = time if first is None else first, time
                    image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    yield time - first, np.ascontiguousarray(image)
            except av.FFmpegError as error:
                raise DataError(f"{path}: cannot decode the rest of the video ({error})") from error

    return Movie(stream.frames or None, frames())


class MovieWriter:
    """Write a movie in H.264 that every player and browser shows; the file appears when it is complete.

    Until then the movie is beside it, as `.NAME.partial`; it is deleted if the writer is left by an exception. All
    frames are scaled to the size of the first, rounded to even numbers.

    Args:
        path: file to write, ending in .mp4.

    Raises:
        DataError: PyAV is not installed, or has no H.264 encoder.
    """

    def __init__(self, path: Path) -> None:
        av = _pyav(path)
        self._codec = next((codec for codec in _CODECS if codec in av.codecs_available), None)
        if self._codec is None:
            raise DataError(
                f"{path}: this PyAV has no H.264 encoder; reinstall it with pip install --force-reinstall av"
            )
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = None
        self._make: Any = av.VideoFrame.from_ndarray
        self._last: int = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = kind is None and self._stream is not None
        try:
            if complete and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if complete:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, time: Fraction, image: np.ndarray) -> None:
        """Add a frame (HW3 uint8 RGB) that is shown from `time` on, in seconds; times must ascend."""
        if self._stream is None:
            self._stream = self._container.add_stream(self._codec, rate=30)
            height, width = (max(2, 2 * round(side / 2)) for side in image.shape[:2])
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
            self._stream.time_base = self._stream.codec_context.time_base = _TIMES
            if self._codec == "libx264":
                self._stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}
            else:
                self._stream.bit_rate = 4 * height * width
        size = (self._stream.width, self._stream.height)
        if image.shape[1::-1] != size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        frame = self._make(np.ascontiguousarray(image), format="rgb24")
        self._last = max(self._last + 1, math.floor(time / _TIMES))
        frame.pts, frame.time_base = self._last, _TIMES
        self._container.mux(self._stream.encode(frame))


def _pyav(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError(f"{path}: reading a video needs PyAV: pip install mtsp[video]; or give a folder") from error
    return av
