"""Read images without decoding them, to decode a JPEG at a reduced size where the whole is not needed."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files.images import Exif, OpenedImage, decode_image, decode_opened, open_image, read_file, warn_of_orientation
from data.files.orientation import turned
from data.types import Labels

_BLOCK = 8  # side of a JPEG's blocks in pixels


class UndecodedJpeg(NamedTuple):
    """A JPEG whose header is checked and whose pixels are not decoded yet."""

    path: Path
    data: bytes
    opened: OpenedImage
    orientation: int
    """EXIF orientation to apply to the pixels; 1: leave them as stored."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height and width of the whole image, and 3."""
        height, width = self.opened.image.height, self.opened.image.width
        return (height, width, 3) if self.orientation < 5 else (width, height, 3)

    def decode(self, scale: float) -> tuple[np.ndarray, float]:
        """Return the pixels, HW3 uint8 RGB, and their scale: the least of 1/8, ..., 4/8 that reaches `scale`, or 1.

        libjpeg makes a smaller image from the low frequencies of each block of 8x8 pixels. Pixel i covers the pixels
        from i / scale to (i + 1) / scale of the whole image. A side that does not divide is rounded up, and the encoder
        filled what is missing of the last pixel. Sizes above a half are left out: they save no time.
        """
        eighths = max(1, math.ceil(_BLOCK * scale - 1e-6))
        # Turned, the incomplete pixel could come first and shift the others.
        cut = self.orientation != 1 and any(side % _BLOCK for side in self.shape[:2])
        if eighths > _BLOCK // 2 or cut or min(self.shape[:2]) < _BLOCK:
            eighths = _BLOCK
        pixels = decode_opened(self.path, self.data, self.opened, eighths)
        whole = pixels.shape[0] == self.opened.image.height  # a rare kind of JPEG, which libjpeg does not reduce
        return turned(pixels, self.orientation), 1.0 if whole else eighths / _BLOCK


class UndecodedSample(Labels):
    """A :class:`mtsp.types.Sample` without next frame, whose frame may be undecoded."""

    frame: np.ndarray | UndecodedJpeg


def read_undecoded(path: Path, *, any_format: bool = False, exif: Exif = "ignore") -> np.ndarray | UndecodedJpeg:
    """Return a JPEG undecoded, and any other image as :func:`data.files.images.read_image` does."""
    data = read_file(path)
    opened = open_image(path, data, any_format=any_format)
    if opened.image.format not in ("JPEG", "MPO"):
        return decode_image(path, data, any_format=any_format, exif=exif)
    if opened.orientation != 1 and exif == "warn":
        warn_of_orientation(path, opened.orientation)
    return UndecodedJpeg(path, data, opened, opened.orientation if exif == "apply" else 1)
