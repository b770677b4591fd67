"""Read and write RGB images as numpy arrays. Masks: :mod:`data.files.masks`. Flow: :mod:`data.files.flow_formats`.

Readers return the file as it was written or raise :class:`data.types.DataError` with its path: a truncated, mislabeled
or oversized file never becomes data. A flipped bit is noticed in any header and anywhere in a PNG, whose checksums are
verified; the pixels of a JPEG have no checksum.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.types import DataError, MissingDataError

MAX_PIXELS = 1 << 26
"""Largest image that is decoded, 8192 x 8192 pixels; a PNG of 261 kB can claim 16384 x 16384."""

MAX_BYTES = 1 << 29
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
IMAGE_SUFFIXES = frozenset(_FORMATS)


def read_image(path: Path, *, any_format: bool = False) -> np.ndarray:
    """Return an image, HW3 uint8 RGB. The EXIF orientation is ignored, since labels do not have it.

    Gray, CMYK and indexed images become RGB, transparency is dropped, 16 bits become 8.

    Args:
        path: the image.
        any_format: accept a suffix that names another format, as images from the web have (n02105855_2933.jpg of
            Stanford Dogs is a PNG). Of a GIF the first image is read.

    Raises:
        DataError: damaged, not of the suffix's format, or larger than :data:`MAX_PIXELS`.
    """
    data = read_file(path)
    image = open_image(path, data, any_format=any_format)
    # OpenCV decodes a JPEG in 1.6 ms where PIL takes 2.3, to the same pixels. Its imread fills what a truncated one
    # lacks with gray and says nothing; that its imdecode refuses it, as 5.0 does, is promised nowhere. A whole file
    # ends with the end marker, which compressed data cannot contain; any other goes to PIL, which counts the rows.
    if image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(b"\xff\xd9")):
        pixels = decode(path, data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels.shape != (image.height, image.width, 3):
            raise DataError(f"{path}: the header says {image.height}x{image.width}, decoded {pixels.shape}")
        return pixels
    if image.mode.startswith(("I", "F")):
        return _deep_gray(path, image)
    return pixels_of(path, image, mode="RGB")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write `image`, HW3 uint8 RGB, in the format of the suffix: .png, .jpg (quality 95), .ppm and others.

    Raises:
        DataError: another shape or type, or a suffix that names no format.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"{path}: an image is HW3 uint8, got {'x'.join(map(str, image.shape))} {image.dtype}")
    _format(path)
    path.write_bytes(cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def open_file(path: Path) -> io.BufferedReader:
    """Open a file to read bytes. Raises DataError."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises DataError if it cannot be read or is larger than an image can be."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size:,} bytes; the most that is read of an image is {MAX_BYTES:,}")
        try:
            return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error


def check_size(path: Path, width: int, height: int) -> None:
    """Raise DataError if a header claims no pixels or more than :data:`MAX_PIXELS`."""
    if width <= 0 or height <= 0 or width * height > MAX_PIXELS:
        raise DataError(f"{path}: the header says {height}x{width} pixels; 1 to {MAX_PIXELS:,} are read")


def _format(path: Path) -> str:
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise DataError(f"{path}: an image's name ends with one of {', '.join(sorted(_FORMATS))}") from None


def open_image(path: Path, data: bytes, *, any_format: bool = False) -> Image.Image:
    """Return the image in `data`, not yet decoded, after checks of its format and size."""
    expected = _format(path)
    if data[:8] == _PNG_MAGIC or (expected == "PNG" and not any_format):
        check_png(path, data)
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # PIL's plugins raise many types: SyntaxError, struct.error, KeyError, ...
        start = f"it starts with {data[:8]!r}" if data else "it is empty"
        raise DataError(f"{path}: not a {expected} image, {start}") from error
    allowed = {*_FORMATS.values(), "GIF"} if any_format else {expected}
    if image.format not in allowed and not (image.format == "MPO" and "JPEG" in allowed):  # MPO: several JPEGs
        raise DataError(f"{path}: named as a {expected} image, but it is a {image.format}")
    check_size(path, image.width, image.height)
    return image


def pixels_of(path: Path, image: Image.Image, mode: str | None = None) -> np.ndarray:
    """Return the decoded pixels, as stored or in another mode of PIL; DataError if the file is not whole."""
    try:
        return np.array(image if mode is None else image.convert(mode))
    except Exception as error:  # as in `open_image`
        raise DataError(f"{path}: truncated or damaged: {error}") from error


def _deep_gray(path: Path, image: Image.Image) -> np.ndarray:
    """Return 16-bit gray as 8-bit RGB, HW3: PIL's own conversion turns everything above 255 white."""
    if not image.mode.startswith("I;16") and (image.mode, image.format) != ("I", "PPM"):
        raise DataError(f"{path}: pixels of kind {image.mode}, whose range is not known; store 8 or 16 bits a channel")
    return np.repeat((pixels_of(path, image) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    """Decode an image with OpenCV. Raises DataError if it is damaged."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if pixels is None:
        raise DataError(f"{path}: truncated or damaged, it cannot be decoded")
    return pixels


def check_png(path: Path, data: bytes) -> None:
    """Raise DataError unless `data` is a PNG of allowed size with the right checksum in each chunk."""
    if data[:8] != _PNG_MAGIC:
        raise DataError(f"{path}: not a PNG image, {f'it starts with {data[:8]!r}' if data else 'it is empty'}")
    position, kind, view = 8, b"", memoryview(data)
    while kind != b"IEND":
        if position + 12 > len(data):
            raise DataError(f"{path}: truncated, the PNG has no end")
        length = int.from_bytes(view[position : position + 4], "big")
        kind = bytes(view[position + 4 : position + 8])
        end = position + 8 + length
        if end + 4 > len(data):
            raise DataError(f"{path}: truncated, the PNG's {kind!r} part takes {length:,} bytes")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DataError(f"{path}: damaged, the PNG's {kind!r} part does not have the checksum it was written with")
        if position == 8:
            if kind != b"IHDR" or length != 13:
                raise DataError(f"{path}: not a PNG image, it has no header")
            check_size(path, *struct.unpack(">II", view[16:24]))
        position = end + 4
