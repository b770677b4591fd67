"""Read and write frames, masks and flow: .flo, .pfm, KITTI's 16-bit PNG, indexed PNG, RGB pictures; numpy arrays.

Every reader gives the whole file as it was written, or raises :class:`DataError` with the file's name: a truncated,
mislabeled, oversized or non-finite file never becomes data. A bit that flipped on the disk is noticed in a PNG (its
checksums are verified) and in any header; .flo, .pfm and JPEG carry no checksum for what follows.
"""

import io
import mmap
import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mtsp.metrics.flow import KNOWN_FLOW
from mtsp.visualize import palette

MAX_PIXELS = 1 << 26
"""The most pixels that are decoded, 8192 x 8192; a PNG of 261 kB can claim 16384 x 16384."""

MAX_BYTES = 1 << 29
UNKNOWN_FLOW = np.float32(1.6666668e9)
"""What is written into a .flo where flow is unknown, as in Middlebury's own files."""

_FLO_MAGIC = b"PIEH"  # the float 202021.25, little-endian
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
_PFM_HEADER = re.compile(
    rb"(PF|Pf)[ \t]*\r?\n(\d{1,6})[ \t\n]+(\d{1,6})[ \t]*\r?\n"
    rb"([-+]?\d{1,9}(?:\.\d{0,9})?(?:[eE][-+]?\d{1,2})?)[ \t]*\r?\n"
)


class DataError(ValueError):
    """A file or folder of data that cannot be used. The message names it and says what is wrong with it."""


class MissingDataError(DataError, FileNotFoundError):
    """Files that a data set should have are not there. The message names the first ten and counts all."""


def read_flow(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return flow, HW2 float32 in pixels, and where it is known, HW bool or None for everywhere.

    The format is the suffix's: .flo, .pfm of three channels (the third is dropped), or .png as KITTI has it. Unknown
    flow, which .flo and .pfm store as a value beyond :data:`mtsp.metrics.flow.KNOWN_FLOW`, is returned as 0.

    Raises:
        DataError: see the reader of each format.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return read_kitti_flow(path)
    if suffix == ".flo":
        flow = read_flo(path)
    elif suffix == ".pfm":
        flow = _read_pfm(path, flow=True)
    else:
        raise DataError(f"{path}: flow is read from .flo, .pfm or .png")
    if _sum_of_squares(flow) <= KNOWN_FLOW**2:  # as quick as a look at all of it can be; then no value is larger
        return flow, None
    known = np.abs(flow) <= KNOWN_FLOW
    valid = known[..., 0] & known[..., 1]
    if valid.all():
        return flow, None
    flow[~valid] = 0
    return flow, valid


def read_flo(path: Path) -> np.ndarray:
    """Return the flow in a Middlebury .flo file, HW2 float32, (dx, dy) in pixels; values as stored, unknown ones too.

    Raises:
        DataError: no PIEH tag, a size that the file does not have, or a value that is NaN or infinite.
    """
    with _open(path) as file:
        header = file.read(12)
        if header[:4] != _FLO_MAGIC:
            raise DataError(f"{path}: not a .flo file, it starts with {header[:4]!r} instead of {_FLO_MAGIC!r}")
        if len(header) < 12:
            raise DataError(f"{path}: truncated, {len(header)} bytes are less than a .flo header")
        width, height = struct.unpack("<ii", header[4:])
        _check_size(path, width, height)
        _check_bytes(path, os.fstat(file.fileno()).st_size, 12 + 8 * width * height, f"{height}x{width} of .flo")
        flow = np.fromfile(file, "<f4", count=2 * width * height)
    return _finite(path, flow).reshape(height, width, 2)


def write_flo(path: Path, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write `flow`, HW2 in pixels, as .flo; where `valid` (HW bool) is false, :data:`UNKNOWN_FLOW`.

    Raises:
        DataError: another shape, or NaN or infinity.
    """
    _check_written_flow(path, flow, valid)
    if valid is not None:
        flow = np.where(valid[..., None], flow, UNKNOWN_FLOW)
    height, width = flow.shape[:2]
    path.write_bytes(_FLO_MAGIC + struct.pack("<ii", width, height) + np.ascontiguousarray(flow, "<f4").tobytes())


def read_pfm(path: Path) -> np.ndarray:
    """Return a .pfm file, top row first: HW float32 of a gray ("Pf") one, HW3 of a color ("PF") one.

    Both byte orders are read. The size of the scale is not applied: Scene Flow's files, as most, only use its sign.

    Raises:
        DataError: another header, a size that the file does not have, or a value that is NaN or infinite.
    """
    return _read_pfm(path, flow=False)


def _read_pfm(path: Path, flow: bool) -> np.ndarray:
    """`read_pfm`, or with `flow` the first two of three channels, HW2, without reading the third."""
    with _open(path) as file:
        header = _PFM_HEADER.match(file.read(64))
        if header is None:
            raise DataError(f"{path}: not a .pfm file, its first lines are not PF or Pf, width and height, and scale")
        kind, *numbers = header.groups()
        width, height, scale = int(numbers[0]), int(numbers[1]), float(numbers[2])
        channels = 3 if kind == b"PF" else 1
        _check_size(path, width, height)
        if scale == 0:
            raise DataError(f"{path}: the scale is 0, its sign must give the byte order")
        if flow and channels != 3:
            raise DataError(f"{path}: a gray .pfm holds no flow, which has two channels of three")
        claimed = header.end() + 4 * channels * width * height
        _check_bytes(path, os.fstat(file.fileno()).st_size, claimed, f"{height}x{width} of .pfm")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # One strided copy from the page cache turns the rows (they are stored bottom-up). A complex number is the first
    # two channels of a pixel as one item: copied so, 540x960 takes 0.6 ms, channel by channel 1.3, as [..., :2] 4.5.
    order, row = "<" if scale < 0 else ">", 4 * channels * width
    shape, item = ((height, width), "c8") if flow else ((height, width * channels), "f4")
    stored = np.ndarray(
        shape, order + item, mapped, header.end() + (height - 1) * row, (-row, 12 if flow else 4)
    )  # the last row of the file first
    values = _finite(path, stored.astype("<" + item).view("<f4").reshape(-1))
    return values.reshape((height, width) if channels == 1 else (height, width, 2 if flow else 3))


def write_pfm(path: Path, values: np.ndarray, little_endian: bool = True) -> None:
    """Write `values`, HW or HW3, as a gray or color .pfm.

    Raises:
        DataError: another shape, or NaN or infinity.
    """
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3) or values.size == 0:
        raise DataError(f"{path}: a .pfm holds HW or HW3, got {'x'.join(map(str, values.shape))}")
    _finite(path, values)
    height, width = values.shape[:2]
    header = f"{'PF' if values.ndim == 3 else 'Pf'}\n{width} {height}\n{-1.0 if little_endian else 1.0}\n"
    path.write_bytes(header.encode() + values[::-1].astype("<f4" if little_endian else ">f4").tobytes())


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow in a KITTI .png, HW2 float32 in pixels, 0 where unknown, and where it is known, HW bool.

    A pixel holds (u, v, valid) in 16 bits each, u = (stored - 2^15) / 64.

    Raises:
        DataError: not a whole PNG of three 16-bit channels.
    """
    data = _read(path)
    _check_png(path, data)
    stored = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[2] != 3:
        kind = f"{'x'.join(map(str, stored.shape))} {stored.dtype}"
        raise DataError(f"{path}: KITTI flow is HxWx3 uint16, this PNG is {kind}")
    valid = stored[..., 0] > 0  # cv2 gives the channels in the order valid, v, u
    flow = np.empty((*valid.shape, 2), np.float32)
    for channel in range(2):
        flow[..., channel] = (stored[..., 2 - channel].astype(np.float32) - 32768) * (valid / np.float32(64))
    return flow, valid


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write `flow`, HW2 in pixels within [-512, 512), and where it is known (HW bool) as KITTI's 16-bit PNG.

    Raises:
        DataError: another shape, NaN, infinity, or known flow beyond 512 pixels.
    """
    _check_written_flow(path, flow, valid)
    valid = np.ones(flow.shape[:2], dtype=bool) if valid is None else valid
    stored = np.rint(np.where(valid[..., None], flow, 0).astype(np.float64) * 64 + 32768)
    if stored.min() < 0 or stored.max() > 65535:
        raise DataError(f"{path}: KITTI's format holds flow within [-512, 512) pixels, got {np.abs(flow[valid]).max()}")
    pixels = np.dstack([valid, stored[..., 1], stored[..., 0]]) * valid[..., None]
    path.write_bytes(cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes())


def read_mask(path: Path) -> np.ndarray:
    """Return a mask, HW uint8: the palette index of an indexed picture, the value of a gray one.

    Raises:
        DataError: not a whole picture of the suffix's format, one of RGB or 16-bit pixels, which hold no ids, or a
            JPEG, which does not keep them.
    """
    image = _open_mask(path)
    if image.mode not in ("P", "L", "1"):
        raise DataError(
            f"{path}: the mask has pixels of kind {image.mode}, which are colors and no class ids; store it as an "
            "indexed PNG (each pixel an id, the palette only says how it is shown) or as 8-bit gray"
        )
    return _pixels(path, image).astype(np.uint8, copy=False)


def read_foreground(path: Path) -> np.ndarray:
    """Return where a mask is not zero, HW bool: indexed, gray, RGB or RGBA, whose alpha does not count.

    Raises:
        DataError: not a whole picture of the suffix's format, or a JPEG, whose zeros around an object are not zero.
    """
    image = _open_mask(path)
    pixels = _pixels(path, image)
    if pixels.ndim == 2:
        return pixels > 0
    colors = pixels[..., :-1] if image.mode in ("RGBA", "LA", "PA") else pixels
    return np.logical_or.reduce(colors > 0, axis=2)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write `mask`, HW uint8 or bool, as an indexed PNG in the colors of DAVIS and PASCAL VOC.

    Raises:
        DataError: another shape or type.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_) or mask.size == 0:
        raise DataError(f"{path}: a mask is HW uint8 or bool, got {'x'.join(map(str, mask.shape))} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8), mode="P")
    image.putpalette(palette().tobytes())
    image.save(path, format="PNG")


def read_image(path: Path, *, any_format: bool = False) -> np.ndarray:
    """Return a picture, HW3 uint8, RGB as stored: a camera's note to rotate it (EXIF) is ignored, as labels ignore it.

    Gray, CMYK and indexed pictures become RGB, transparency is dropped, 16 bits become 8.

    Args:
        path: of the picture.
        any_format: read it also if its suffix names another format than it has, as happens to pictures from the web:
            n02105855_2933.jpg of Stanford Dogs is a PNG. Of a GIF the first picture is read.

    Raises:
        DataError: not a whole picture of the suffix's format, or one of more than :data:`MAX_PIXELS`.
    """
    data = _read(path)
    image = _header(path, data, any_format=any_format)
    # OpenCV decodes a JPEG in 1.6 ms where PIL takes 2.3, to the same pixels. Its imread fills what a truncated one
    # lacks with gray and says nothing; that its imdecode refuses it, as 5.0 does, is promised nowhere. A whole file
    # ends with the end marker, which compressed data cannot contain; any other goes to PIL, which counts the rows.
    if image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(b"\xff\xd9")):
        pixels = _decode(path, data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels.shape != (image.height, image.width, 3):
            raise DataError(f"{path}: the header says {image.height}x{image.width}, decoded {pixels.shape}")
        return pixels
    if image.mode.startswith(("I", "F")):
        return _deep_gray(path, image)
    return _pixels(path, image, mode="RGB")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write `image`, HW3 uint8 RGB, in the format of the suffix: .png, .jpg (quality 95), .ppm and others.

    Raises:
        DataError: another shape or type, or a suffix that names no format.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"{path}: a picture is HW3 uint8, got {'x'.join(map(str, image.shape))} {image.dtype}")
    _format(path)
    path.write_bytes(cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def _open(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error


def _read(path: Path) -> bytes:
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size:,} bytes; the most that is read of a picture is {MAX_BYTES:,}")
        try:
            return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width <= 0 or height <= 0 or width * height > MAX_PIXELS:
        raise DataError(f"{path}: the header says {height}x{width} pixels; 1 to {MAX_PIXELS:,} are read")


def _check_bytes(path: Path, size: int, claimed: int, what: str) -> None:
    if size != claimed:
        state = "truncated" if size < claimed else "too long"
        raise DataError(f"{path}: {state}, {size:,} bytes where {what} takes {claimed:,}")


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    # The sum of squares is NaN or infinite when a value is, and costs a third of looking at each; it also overflows.
    if not np.isfinite(_sum_of_squares(values)) and not np.isfinite(values).all():
        raise DataError(f"{path}: {np.count_nonzero(~np.isfinite(values)):,} values are NaN or infinite")
    return values


def _sum_of_squares(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        return float(np.dot(flat, flat))


def _check_written_flow(path: Path, flow: np.ndarray, valid: np.ndarray | None) -> None:
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise DataError(f"{path}: flow is HW2, got {'x'.join(map(str, flow.shape))}")
    if valid is not None and (valid.shape != flow.shape[:2] or valid.dtype != np.bool_):
        raise DataError(f"{path}: valid is HW bool like its flow {flow.shape}, got {valid.shape} {valid.dtype}")
    _finite(path, flow)


def _format(path: Path) -> str:
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise DataError(f"{path}: a picture's name ends with one of {', '.join(sorted(_FORMATS))}") from None


def _header(path: Path, data: bytes, *, any_format: bool = False) -> Image.Image:
    """Return the picture in `data`, not decoded yet: of the format that its name says, and not too large."""
    expected = _format(path)
    if data[:8] == _PNG_MAGIC or (expected == "PNG" and not any_format):
        _check_png(path, data)
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # PIL's plugins raise what their parsing meets: SyntaxError, struct.error, KeyError...
        start = f"it starts with {data[:8]!r}" if data else "it is empty"
        raise DataError(f"{path}: not a {expected} picture, {start}") from error
    allowed = {*_FORMATS.values(), "GIF"} if any_format else {expected}
    if image.format not in allowed and not (image.format == "MPO" and "JPEG" in allowed):  # MPO: several JPEGs in one
        raise DataError(f"{path}: named as a {expected} picture, but it is a {image.format}")
    _check_size(path, image.width, image.height)
    return image


def _open_mask(path: Path) -> Image.Image:
    image = _header(path, _read(path))
    if image.format in ("JPEG", "MPO"):
        raise DataError(
            f"{path}: the mask is a JPEG, which changes values a little where they meet; make it anew as a PNG"
        )
    return image


def _pixels(path: Path, image: Image.Image, mode: str | None = None) -> np.ndarray:
    try:
        return np.array(image if mode is None else image.convert(mode))
    except Exception as error:  # as in `_header`
        raise DataError(f"{path}: truncated or damaged: {error}") from error


def _deep_gray(path: Path, image: Image.Image) -> np.ndarray:
    """Return gray of 16 bits as RGB of 8, HW3: PIL's own conversion makes white of all that is above 255."""
    if not image.mode.startswith("I;16") and (image.mode, image.format) != ("I", "PPM"):
        raise DataError(f"{path}: pixels of kind {image.mode}, whose range is not known; store 8 or 16 bits a channel")
    return np.repeat((_pixels(path, image) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if pixels is None:
        raise DataError(f"{path}: truncated or damaged, it cannot be decoded")
    return pixels


def _check_png(path: Path, data: bytes) -> None:
    """Raise DataError unless `data` is a PNG of allowed size and whole, by the checksum of each of its parts."""
    if data[:8] != _PNG_MAGIC:
        raise DataError(f"{path}: not a PNG picture, {f'it starts with {data[:8]!r}' if data else 'it is empty'}")
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
                raise DataError(f"{path}: not a PNG picture, it has no header")
            _check_size(path, *struct.unpack(">II", view[16:24]))
        position = end + 4
