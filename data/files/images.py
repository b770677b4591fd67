"""Read and write RGB images as numpy arrays. Masks: :mod:`data.files.masks`. Flow: :mod:`data.files.flow_formats`.

Readers return the pixels as written, or raise :class:`data.types.DataError` with the path if a file is truncated,
mislabeled or oversized. Damage is detected in all headers and, by checksum, everywhere in a PNG, but not in the pixels
of a JPEG, which have no checksum.
"""

import io
import logging
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from data.files.jpeg import decode_jpeg
from data.files.orientation import orientation_in, turned, unturned
from data.files.pgm import without_comments
from data.files.png import MAGIC, PngHeader, png_header
from data.types import DataError, MissingDataError

MAX_PIXELS = 1 << 26
"""Largest number of pixels to decode, 8192 x 8192, since a PNG of 261 kB can claim 16384 x 16384 pixels."""

MAX_BYTES = 1 << 29
_LOG = logging.getLogger("mtsp")
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
IMAGE_SUFFIXES = frozenset(_FORMATS)


Exif = Literal["ignore", "warn", "apply"]
"""How to use the EXIF orientation of an image: ignore it, warn about it, or apply it."""


def read_image(path: Path, *, any_format: bool = False, exif: Exif = "ignore") -> np.ndarray:
    """Return an image as HW3 uint8 RGB.

    Gray, CMYK and indexed images are converted to RGB, transparency is dropped, and 16 bits are reduced to 8. By
    default, pixels are returned as stored and the EXIF orientation is ignored, since labels usually ignore it, too.

    Args:
        path: file of the image.
        any_format: also read a file with a format other than its suffix says, which is common for images from the web:
            n02105855_2933.jpg of Stanford Dogs is a PNG.
        exif: "apply" rotates the image by its EXIF orientation; "warn" logs a warning, once per folder, if it has one.

    Raises:
        DataError: the file is damaged, not of the format of its suffix, has several images, or has more than
            :data:`MAX_PIXELS` pixels.
    """
    return decode_image(path, read_file(path), any_format=any_format, exif=exif)


def decode_image(path: Path, data: bytes, *, any_format: bool = False, exif: Exif = "ignore") -> np.ndarray:
    """Return the image in `data` as :func:`read_image` does; `path` names it in messages, and its format."""
    found = open_image(path, data, any_format=any_format)
    if found.orientation == 1 or exif == "ignore":
        return decode_opened(path, data, found)
    if exif == "warn":
        warn_of_orientation(path, found.orientation)
        return decode_opened(path, data, found)
    return turned(decode_opened(path, data, found), found.orientation)


def orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 (as stored) to 8. Raises DataError."""
    return open_image(path, read_file(path), any_format=True).orientation


def shape_of(path: Path, *, exif: Exif = "ignore") -> tuple[int, int]:
    """Return the height and width of an image as :func:`read_image` gives them, without decoding it."""
    found = open_image(path, read_file(path), any_format=True)
    height, width = found.image.height, found.image.width
    return (width, height) if exif == "apply" and found.orientation >= 5 else (height, width)


def decode_opened(path: Path, data: bytes, found: "OpenedImage", eighths: int = 8) -> np.ndarray:
    """Return the pixels of an opened image as stored, HW3 uint8 RGB. `eighths`: see :func:`decode_jpeg`."""
    image = found.image
    if image.format in ("JPEG", "MPO") and (pixels := decode_jpeg(path, data, eighths)) is not None:
        return _of_size(path, image, pixels, eighths)
    # OpenCV decodes a PNG faster than PIL, with the same pixels, and refuses one with missing rows. Both fill missing
    # parts of a JPEG with gray, but PIL raises an error if the end marker is missing.
    if image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(b"\xff\xd9")):
        pixels = decode(path, data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        return _of_size(path, image, pixels)
    if image.mode.startswith(("I", "F")):
        return _deep_gray(path, image)
    return pixels_of(path, image, mode="RGB")


def _of_size(path: Path, image: Image.Image, pixels: np.ndarray, eighths: int = 8) -> np.ndarray:
    if pixels.shape != (math.ceil(image.height * eighths / 8), math.ceil(image.width * eighths / 8), 3):
        raise DataError(f"{path}: the header says {image.height}x{image.width}, decoded {pixels.shape}")
    return pixels


_warned: set[Path] = set()


def warn_of_orientation(path: Path, tag: int) -> None:
    """Log, once per folder, that an image is read as stored although its EXIF says it is turned."""
    if path.parent not in _warned:
        _warned.add(path.parent)
        _LOG.warning(
            "%s: its EXIF has orientation %d (turned); it is read as stored, like others of its folder. Labels or "
            "predictions may not fit what a viewer shows: say `exif: apply` (turn images) or `exif: ignore` where the "
            "data set has it", path, tag,
        )  # fmt: skip


def write_image(path: Path, image: np.ndarray) -> None:
    """Write `image`, HW3 uint8 RGB, in the format of its suffix: .png, .jpg (quality 95), .ppm and others.

    Raises:
        DataError: the shape or type is wrong, or the suffix is unknown.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"{path}: an image is HW3 uint8, got {'x'.join(map(str, image.shape))} {image.dtype}")
    _format(path)
    path.write_bytes(cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def open_file(path: Path) -> io.BufferedReader:
    """Open a file to read bytes. Raises DataError if it cannot be opened, or is a pipe or a device."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: cannot be opened: it is a folder, a pipe or a device")
        return path.open("rb")
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: no such file") from error
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error


def read_file(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file. Raises DataError if it cannot be read or has more than `most` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DataError(f"{path}: {size:,} bytes, too large for such a file; at most {most:,} are read")
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


class OpenedImage(NamedTuple):
    """An image that is not decoded yet."""

    image: Image.Image
    depth: int = 8
    """Number of bits of a stored gray value or index."""
    orientation: int = 1
    png: PngHeader | None = None


def open_image(path: Path, data: bytes, *, any_format: bool = False) -> OpenedImage:
    """Open the image in `data` without decoding it; check its format, its size, and that it is a single image."""
    expected = _format(path)
    png = None
    if data[:8] == MAGIC or (expected == "PNG" and not any_format):
        png = check_png(path, data)
    if re.match(rb"P[1-6]", data):
        data = without_comments(path, data)
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # PIL's plugins raise many types: SyntaxError, struct.error, KeyError, ...
        start = f"it starts with {data[:8]!r}" if data else "it is empty"
        raise DataError(f"{path}: not a {expected} image, {start}") from error
    allowed = {*_FORMATS.values()} if any_format else {expected}
    if image.format not in allowed and not (image.format == "MPO" and "JPEG" in allowed):  # MPO: several JPEGs in one
        raise DataError(f"{path}: named as a {expected} image, but it is a {image.format}")
    check_size(path, image.width, image.height)
    try:
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:
        raise DataError(f"{path}: truncated or damaged: {error}") from error
    if count > 1:
        raise DataError(f"{path}: {count} images in one file, animated or in pages; store the one that is meant alone")
    depth = 8
    if png is not None:
        depth = png.depth
    elif image.format == "TIFF":
        bits: Any = image.tag_v2.get(258, 1)  # pyright: ignore[reportAttributeAccessIssue]
        depth = bits[0] if isinstance(bits, tuple) else bits
    return OpenedImage(image, depth, orientation_in(png.exif if png is not None else image.getexif()), png)


def pixels_of(path: Path, image: Image.Image, mode: str | None = None) -> np.ndarray:
    """Return the pixels as stored, undoing the rotation that Pillow applies to TIFF files only."""
    tag = orientation_in(image.getexif()) if image.format == "TIFF" else 1
    try:
        pixels = np.array(image if mode is None else image.convert(mode))
    except Exception as error:  # as in `_header`
        raise DataError(f"{path}: truncated or damaged: {error}") from error
    return unturned(pixels, tag)


def _deep_gray(path: Path, image: Image.Image) -> np.ndarray:
    """Return 16-bit gray as 8-bit RGB, HW3; PIL's own conversion would make all values above 255 white."""
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


def check_png(path: Path, data: bytes) -> PngHeader:
    """Return the header of a PNG; raise DataError if it is too large or a checksum is wrong."""
    header = png_header(path, data)
    check_size(path, header.width, header.height)
    return header
