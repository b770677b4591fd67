"""Read gray PGM files with their stored values, which Pillow would scale to 0 to 255; remove comments for Pillow."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.types import DataError

_SPACE = rb"(?:\s|#[^\n\r]*[\n\r])+"
_HEADER = re.compile(rb"(P[25])%s(\d{1,6})%s(\d{1,6})%s(\d{1,6})\s" % ((_SPACE,) * 3))
_HEADERS = {
    True: re.compile(rb"(P[14])%s(\d{1,6})%s(\d{1,6})\s" % ((_SPACE,) * 2)),  # black and white: no maxval
    False: re.compile(rb"(P[2356])%s(\d{1,6})%s(\d{1,6})%s(\d{1,6})\s" % ((_SPACE,) * 3)),
}


def without_comments(path: Path, data: bytes) -> bytes:
    """Return a PBM, PGM or PPM file without its comments. Pillow takes a minute to read a mebibyte of them.

    Raises:
        DataError: it has no valid header, or more values than the header says, such as a second image.
    """
    found = _HEADERS[data[1:2] in b"14"].match(data)
    if found is None:
        raise DataError(f"{path}: the header {data[:20]!r} is not that of a PBM, PGM or PPM file")
    body = data[found.end() :]
    if data[1:2] in b"123":
        body = re.sub(rb"#[^\n\r]*", b" ", body)
    if _rest(found.groups(), body):
        raise DataError(
            f"{path}: it goes on after the image that its header describes; store each image in a file of its own"
        )
    return b" ".join(found.groups()) + b"\n" + body


def _rest(header: Sequence[bytes], body: bytes) -> bytes:
    """Return what follows the values of an image, without blanks."""
    kind, width, height = header[0], int(header[1]), int(header[2])
    count = width * height * (3 if kind in (b"P3", b"P6") else 1)
    if kind == b"P1":  # digits need no blanks between them
        return re.sub(rb"\s", b"", body)[count:]
    if kind in (b"P2", b"P3"):
        return b"".join(body.split(maxsplit=count)[count:])
    size = (width + 7) // 8 * height if kind == b"P4" else count * (2 if int(header[3]) > 255 else 1)
    return body[size:].strip()


def read_pgm(path: Path, data: bytes) -> np.ndarray:
    """Return the stored values, HW uint8, of a PGM file with up to 8 bits, in binary (P5) or text form (P2).

    Raises:
        DataError: not a gray PGM file, 16-bit values, values above maxval, or too few values.
    """
    found = _HEADER.match(data)
    if found is None:
        kind = data[:2].decode("ascii", "replace")
        raise DataError(f"{path}: no gray PGM of ids: the header starts with {kind}, expected P2 or P5, sizes, maxval")
    width, height, maxval = (int(number) for number in found.groups()[1:])
    if not 0 < maxval < 256:
        what = "the header says maxval 0" if not maxval else "it has 16 bits a value"
        raise DataError(f"{path}: a PGM whose ids cannot be read: {what}, 8 are expected")
    count, body = width * height, data[found.end() :]
    if found[1] == b"P5":
        values = np.frombuffer(body, np.uint8, count=min(count, len(body)))
    else:
        words = re.sub(rb"#[^\n\r]*", b" ", body).split()[:count]
        if wrong := next((word for word in words if not word.isdigit() or len(word) > 5), None):
            raise DataError(f"{path}: {wrong[:20]!r} is no number of a PGM")
        values = np.array([int(word) for word in words], np.int64)
    if len(values) < count:
        raise DataError(f"{path}: truncated, {len(values):,} values where {height}x{width} take {count:,}")
    if values.max(initial=0) > maxval:
        raise DataError(f"{path}: damaged, the PGM holds a value {values.max()}, above its maxval {maxval}")
    return values.astype(np.uint8).reshape(height, width)
