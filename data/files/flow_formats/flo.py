"""Read and write Middlebury's .flo files."""

import os
import struct
from pathlib import Path

import numpy as np

from data.files.flow_formats.checks import check_bytes, check_written_flow, finite
from data.files.images import check_size, open_file
from data.types import DataError

UNKNOWN_FLOW = np.float32(1.6666668e9)
"""Value of unknown flow in a .flo file, as Middlebury writes it."""

_FLO_MAGIC = b"PIEH"  # the float 202021.25, little-endian


def read_flo(path: Path) -> np.ndarray:
    """Return the stored values of a Middlebury .flo file, HW2 float32, (dx, dy) in pixels, including unknown vectors.

    Raises:
        DataError: the PIEH tag is missing, the size does not match the file, or a value is NaN or infinite.
    """
    with open_file(path) as file:
        header = file.read(12)
        if header[:4] != _FLO_MAGIC:
            raise DataError(f"{path}: not a .flo file, it starts with {header[:4]!r} instead of {_FLO_MAGIC!r}")
        if len(header) < 12:
            raise DataError(f"{path}: truncated, {len(header)} bytes are less than a .flo header")
        width, height = struct.unpack("<ii", header[4:])
        check_size(path, width, height)
        check_bytes(path, os.fstat(file.fileno()).st_size, 12 + 8 * width * height, f"{height}x{width} of .flo")
        flow = np.fromfile(file, "<f4", count=2 * width * height)
    return finite(path, flow).reshape(height, width, 2)


def write_flo(path: Path, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write `flow`, HW2 in pixels, as .flo, with :data:`UNKNOWN_FLOW` where `valid` (HW bool) is false.

    Raises:
        DataError: the shape is wrong, or a value is NaN or infinite.
    """
    check_written_flow(path, flow, valid)
    if valid is not None:
        flow = np.where(valid[..., None], flow, UNKNOWN_FLOW)
    height, width = flow.shape[:2]
    path.write_bytes(_FLO_MAGIC + struct.pack("<ii", width, height) + np.ascontiguousarray(flow, "<f4").tobytes())
