"""Decode JPEG files strictly: warnings of libjpeg, such as for a scan that ends early, become errors."""

import logging
import math
import re
from pathlib import Path

import numpy as np

from data.types import DataError

try:
    import simplejpeg
except ImportError:  # pragma: no cover
    simplejpeg = None

_LOG = logging.getLogger("mtsp")
_UNUSUAL = re.compile(
    "unsupported (?!marker)|unknown JFIF revision|Adobe color|precision|colorspace|color conversion|arithmetic|"
    "subsampl",
    re.IGNORECASE,
)
"""Messages of libjpeg about files that are not damaged, and that Pillow or OpenCV may be able to read."""


def decode_jpeg(path: Path, data: bytes, eighths: int = 8) -> np.ndarray | None:
    """Return the pixels of a JPEG, HW3 uint8 RGB; None if it is CMYK or simplejpeg is not installed.

    Pillow and OpenCV decode to the same pixels, but silently fill missing parts of a damaged file with gray.

    Args:
        path: names the file in messages.
        data: content of the file.
        eighths: size of the result, 1 to 8 eighths of each side, rounded up. libjpeg computes `eighths` pixels from
            every 8, so pixel i covers the stored pixels from 8 i / eighths to 8 (i + 1) / eighths. Both sides of the
            image are at least 8 pixels.

    Raises:
        DataError: the file is damaged; the message is libjpeg's.
    """
    if simplejpeg is None:
        _warn_once()
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, "CMYK", strict=True)
            return None
        small = {"min_height": math.ceil(int(height) * eighths / 8), "min_width": math.ceil(int(width) * eighths / 8)}
        return simplejpeg.decode_jpeg(data, "RGB", strict=True, **small)
    except ValueError as error:
        if _UNUSUAL.search(str(error)):
            return None
        raise DataError(f"{path}: truncated or damaged: {error}") from error


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        _LOG.warning("simplejpeg is not installed: JPEG files that are damaged inside are not noticed; install it")
