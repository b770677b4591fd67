"""Encoders of the tests, written from the formats' specifications: what is stored is known without any library."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, and the steps of both, of each pass of an interlaced PNG."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(rows: np.ndarray, depth: int) -> bytes:
    """Rows of samples, N x S, as scan lines without a filter: `depth` bits a sample, the first in the high bits."""
    lines = []
    for row in rows:
        if depth == 16:
            line = row.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            line = np.packbits(bits.reshape(-1)).tobytes()
        lines.append(b"\0" + line)
    return b"".join(lines)


def png(
    samples: np.ndarray,
    depth: int = 8,
    color: int = 0,
    *,
    palette: Sequence[tuple[int, int, int]] = (),
    interlaced: bool = False,
    before: bytes = b"",
    rows: int | None = None,
) -> bytes:
    """A PNG of samples HW (gray, indexed) or HWC as they are stored; of the first `rows` only, if given."""
    values = samples[..., None] if samples.ndim == 2 else samples
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    if interlaced:
        passes = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7]
        raw = b"".join(packed(part.reshape(part.shape[0], -1), depth) for part in passes if part.size)
    else:
        raw = packed(values[:rows].reshape(-1, width * channels), depth)
    colors = chunk(b"PLTE", bytes(value for color in palette for value in color)) if palette else b""
    parts = (chunk(b"IHDR", header), colors, before, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    samples: np.ndarray,
    depth: int = 8,
    *,
    photometric: int = 1,
    orientation: int = 1,
    colors: Sequence[int] = (),
    rows: int | None = None,
    tile: int | None = None,
) -> bytes:
    """An uncompressed little-endian TIFF of samples HW or HW3 as they are stored.

    It has one strip, or strips of `rows` rows, or tiles of `tile` x `tile` pixels, the last ones padded with zeros.
    """
    values = samples[..., None] if samples.ndim == 2 else samples
    height, width, channels = values.shape
    high, wide = (tile, tile) if tile is not None else (rows or height, width)
    padded = np.pad(values, ((0, -height % high if tile else 0), (0, -width % wide), (0, 0)))
    parts = [
        _lines(padded[y : y + high, x : x + wide], depth) for y in range(0, height, high) for x in range(0, width, wide)
    ]
    strip = b"".join(parts)
    sizes = [len(part) for part in parts]
    starts = [8 + sum(sizes[:i]) for i in range(len(parts))]
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [depth] * channels), (259, 3, [1]), (262, 3, [photometric]),
        *([] if tile else [(273, 4, starts)]), (274, 3, [orientation]), (277, 3, [channels]),
        *([] if tile else [(278, 4, [high]), (279, 4, sizes)]),
    ]  # fmt: skip
    if colors:
        tags.append((320, 3, colors))
    if tile:
        tags += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, starts), (325, 4, sizes)]
    at = 8 + len(strip) + len(strip) % 2
    beyond, entries = b"", b""
    start = at + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in tags:
        data = struct.pack(f"<{len(numbers)}{'I' if kind == 4 else 'H'}", *numbers)
        if len(data) > 4:
            place = struct.pack("<I", start + len(beyond))
            beyond += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + place
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + beyond
    return b"II*\0" + struct.pack("<I", at) + strip + b"\0" * (len(strip) % 2) + directory


def _lines(values: np.ndarray, depth: int) -> bytes:
    lines = []
    for row in values.reshape(len(values), -1):
        bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
        lines.append(np.packbits(bits.reshape(-1)).tobytes() if depth < 8 else row.astype(f"<u{depth // 8}").tobytes())
    return b"".join(lines)
