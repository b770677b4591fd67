"""Read the frames of a folder, an image or a video file, each with the following frame and its time."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mtsp.types import Sample

_FOLDER_RATE = 24  # frames per second of a folder's movie, as DAVIS


class Frames(NamedTuple):
    """Frames, each with the following frame. `pairs` can be iterated only once."""

    names: Sequence[str] | None  # None for a video file, which must be read first
    total: int | None
    folder: str  # folder of the frames' names if they are from a video file, else ""
    pairs: "Iterator[tuple[Fraction, Sample]]"  # time in seconds; the last frame of a video has no next_frame


def frames_of(path: Path, *, paired: bool = True) -> Frames:
    """Return the frames at `path`.

    Args:
        path: a folder of images, a folder of such folders, a video file, or an image.
        paired: whether to read the following frame of each frame, too. If False, images may differ in size.

    Raises:
        MissingDataError: `path` does not exist, or has no images.
        DataError: the file is no image and no video, or PyAV is not installed.
    """
    from data.files.images import IMAGE_SUFFIXES, read_image
    from data.types import MissingDataError
    from data.video.folder import FolderConfig
    from mtsp.types import Sample

    if path.is_dir():
        dataset = FolderConfig(name="folder", frames=path, next_frame=paired).build()
        samples = (_without_itself(dataset[i]) for i in range(len(dataset)))
        return Frames(dataset.ids, len(dataset), "", _timed(samples))
    if not path.is_file():
        raise MissingDataError(f"{path}: no such folder, image or video")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        samples = (Sample(name=path.stem, frame=read_image(file)) for file in (path,))
        return Frames([path.stem], 1, "", _timed(samples))
    return _video(path, paired)


def _without_itself(raw: "Sample") -> "Sample":
    """Drop the next frame if it is the frame itself, as for the last frame of a video: there is no flow to predict."""
    if raw.get("next_frame") is raw["frame"]:
        del raw["next_frame"]
    return raw


def _timed(samples: "Iterator[Sample]") -> "Iterator[tuple[Fraction, Sample]]":
    """Yield each frame with its time in its video, at the rate of folders."""
    video, number = None, 0
    for raw in samples:
        folder = raw["name"].rpartition("/")[0]
        number = number + 1 if folder == video else 0
        video = folder
        yield Fraction(number, _FOLDER_RATE), raw


def _video(path: Path, paired: bool) -> Frames:
    from data.files.movies import open_movie
    from data.types import DataError
    from mtsp.types import Sample

    with path.open("rb") as file:
        start = file.read(1024)
    if start.isascii() and b"\0" not in start:
        raise DataError(f"{path} is no image and no video; --video takes a video, --frames an image or a folder")
    movie = open_movie(path)

    def pairs() -> "Iterator[tuple[Fraction, Sample]]":
        with closing(movie.frames):
            for number, (frame, following) in enumerate(pairwise(chain[Any](movie.frames, [None]))):
                time, image = frame
                raw = Sample(name=f"{path.stem}/{number:05d}", frame=image)
                if following is not None and paired:
                    raw["next_frame"] = following[1]
                yield time, raw

    return Frames(None, movie.total, path.stem, pairs())
