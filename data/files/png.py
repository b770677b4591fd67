"""Check a PNG file without decoding it: read its header and EXIF data, verify its checksums and number of pixels."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from data.types import DataError

MAGIC = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


class PngHeader(NamedTuple):
    """Header of a PNG file, and the position of its pixels."""

    width: int
    height: int
    depth: int
    """Number of bits per channel."""
    color: int
    """0 gray, 2 RGB, 3 indexed, 4 gray with alpha, 6 RGB with alpha."""
    interlaced: bool
    exif: bytes
    """Content of the eXIf chunk; empty if there is none."""
    pixels: tuple[slice, ...]
    """Positions of the compressed pixels in the file."""

    def scan_bytes(self) -> int:
        """Return the number of bytes of the decompressed pixels, including filter bytes."""
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for x, y, dx, dy in passes:
            columns, rows = (self.width - x + dx - 1) // dx, (self.height - y + dy - 1) // dy
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * _CHANNELS.get(self.color, 0) * self.depth + 7) // 8)
        return total


def png_header(path: Path, data: bytes) -> PngHeader:
    """Return the header of a PNG after verifying that all chunks are complete and have the right checksum.

    Raises:
        DataError: the file is not a PNG, a chunk is cut off or damaged, or the PNG is animated.
    """
    if data[:8] != MAGIC:
        raise DataError(f"{path}: not a PNG image, {f'it starts with {data[:8]!r}' if data else 'it is empty'}")
    position, kind, view = 8, b"", memoryview(data)
    header, exif, pixels = (0, 0, 0, 0, 0, 0, 0), b"", []
    while kind != b"IEND":
        if position + 12 > len(data):
            raise DataError(f"{path}: truncated, the PNG has no end")
        length = int.from_bytes(view[position : position + 4], "big")
        kind = bytes(view[position + 4 : position + 8])
        body, end = position + 8, position + 8 + length
        if end + 4 > len(data):
            raise DataError(f"{path}: truncated, the PNG's {kind!r} part takes {length:,} bytes")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise DataError(f"{path}: damaged, the PNG's {kind!r} part does not have the checksum it was written with")
        if position == 8:
            if kind != b"IHDR" or length != 13:
                raise DataError(f"{path}: not a PNG image, it has no header")
            header = struct.unpack(">IIBBBBB", view[body:end])
        elif kind == b"acTL":
            raise DataError(f"{path}: an animated PNG; store the image that is meant as a PNG of its own")
        elif kind == b"eXIf":
            exif = bytes(view[body:end])
        elif kind == b"IDAT":
            pixels.append(slice(body, end))
        position = end + 4
    return PngHeader(*header[:4], bool(header[6]), exif, tuple(pixels))


def require_all_rows(path: Path, header: PngHeader, data: bytes) -> None:
    """Check that a PNG has all pixels that its header claims, since PIL would leave missing ones black.

    Raises:
        DataError: the pixels are damaged, or there are too few or too many.
    """
    expected = header.scan_bytes()
    inflate = zlib.decompressobj()
    found = 0
    try:
        for part in header.pixels:
            piece = data[part]
            while piece:
                found += len(inflate.decompress(piece, 1 << 20))
                piece = inflate.unconsumed_tail
                if found > expected:
                    break
    except zlib.error as error:
        raise DataError(f"{path}: truncated or damaged: the PNG's pixels cannot be inflated ({error})") from error
    if found != expected:
        more = "more" if found > expected else f"{found:,}"
        raise DataError(f"{path}: truncated or damaged: {expected:,} bytes of pixels are claimed, the PNG holds {more}")
