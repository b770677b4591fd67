"""Decode JPEG files strictly: what libjpeg only warns about, such as a scan that ends early, is an error."""

import logging
import re
from pathlib import Path

import numpy as np

from data.types import DataError

try:
    import simplejpeg
except ImportError:  # pragma: no cover
    simplejpeg = None

_LOG = logging.getLogger("mtsp")
_DAMAGE = re.compile(r"corrupt|premature|bogus|inconsistent|truncated|unsupported marker|bad ", re.IGNORECASE)


def decode_jpeg(path: Path, data: bytes) -> np.ndarray | None:
    """Return the pixels of a JPEG, HW3 uint8 RGB; None where simplejpeg does not read its kind (CMYK) or is missing.

    Pillow and OpenCV decode to the same pixels, but fill what a damaged file lacks with gray and say nothing.

    Raises:
        DataError: the file is damaged, in the words of libjpeg.
    """
    if simplejpeg is None:
        _warn_once()
        return None
    try:
        colors = simplejpeg.decode_jpeg_header(data)[2]
        if colors in ("CMYK", "YCCK"):
            simplejpeg.decode_jpeg(data, "CMYK", strict=True)
            return None
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        if _DAMAGE.search(str(error)):
            raise DataError(f"{path}: truncated or damaged: {error}") from error
        return None


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        _LOG.warning("simplejpeg is not installed: JPEG files that are damaged inside are not noticed; install it")
