"""Read and write flow as numpy arrays, from .flo, .pfm, .npy and KITTI's 16-bit PNG files.

Readers return the values as written, or raise :class:`data.types.DataError` with the path if a file is truncated,
oversized or not finite. Damage is detected in all headers and everywhere in a PNG, but not in the values of .flo and
.pfm files, which have no checksum.
"""

import mmap
import os
import re
import struct
from pathlib import Path

import cv2
import numpy as np

from data.files.images import check_png, check_size, decode, open_file, read_file
from data.types import DataError
from mtsp.metrics.flow import KNOWN_FLOW

UNKNOWN_FLOW = np.float32(1.6666668e9)
"""Value of unknown flow in a .flo file, as Middlebury writes it."""

FLOW_SUFFIXES = (".flo", ".pfm", ".npy", ".png")
"""Suffixes of files of flow."""

_FLO_MAGIC = b"PIEH"  # the float 202021.25, little-endian
_PFM_HEADER = re.compile(
    rb"(PF|Pf)[ \t]*\r?\n(\d{1,6})[ \t\n]+(\d{1,6})[ \t]*\r?\n"
    rb"([-+]?\d{1,9}(?:\.\d{0,9})?(?:[eE][-+]?\d{1,2})?)[ \t]*\r?\n"
)


def read_flow(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return flow, HW2 float32 in pixels, and a mask of known vectors, HW bool, or None if all are known.

    The suffix determines the format: .flo, .pfm with three channels (the third is dropped), KITTI's .png, or .npy with
    HW2 or 2HW numbers. Unknown vectors, which .flo, .pfm and .npy store as values beyond
    :data:`mtsp.metrics.flow.KNOWN_FLOW`, and .npy also as NaN, are returned as 0.

    Raises:
        DataError: as the reader of the format.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return read_kitti_flow(path)
    if suffix == ".flo":
        flow = read_flo(path)
    elif suffix == ".pfm":
        flow = _read_pfm(path, flow=True)
    elif suffix == ".npy":
        return flow_of_array(path, _read_array(path))
    else:
        raise DataError(f"{path}: flow is read from .flo, .pfm, .npy or .png")
    return _known_flow(flow)


def flow_of_array(path: Path, array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return flow in an array of HW2 or 2HW numbers as :func:`read_flow` does; `path` names it in messages."""
    if array.ndim == 3 and array.shape[0] == 2 and array.shape[2] != 2:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 2 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{path}: flow is HW2 or 2HW of numbers, this array is {'x'.join(map(str, array.shape))} {array.dtype}"
        )
    unknown = float(UNKNOWN_FLOW)
    return _known_flow(np.nan_to_num(array.astype(np.float32), nan=unknown, posinf=unknown))


def _read_array(path: Path) -> np.ndarray:
    with open_file(path) as file:
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path}: not an array of numpy: {' '.join(str(error).split())[:120]}") from error


def _known_flow(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if _sum_of_squares(flow) <= KNOWN_FLOW**2:  # the fastest check; it implies that no value is larger
        return flow, None
    known = np.abs(flow) <= KNOWN_FLOW
    valid = known[..., 0] & known[..., 1]
    if valid.all():
        return flow, None
    flow[~valid] = 0
    return flow, valid


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
        _check_bytes(path, os.fstat(file.fileno()).st_size, 12 + 8 * width * height, f"{height}x{width} of .flo")
        flow = np.fromfile(file, "<f4", count=2 * width * height)
    return _finite(path, flow).reshape(height, width, 2)


def write_flo(path: Path, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write `flow`, HW2 in pixels, as .flo, with :data:`UNKNOWN_FLOW` where `valid` (HW bool) is false.

    Raises:
        DataError: the shape is wrong, or a value is NaN or infinite.
    """
    _check_written_flow(path, flow, valid)
    if valid is not None:
        flow = np.where(valid[..., None], flow, UNKNOWN_FLOW)
    height, width = flow.shape[:2]
    path.write_bytes(_FLO_MAGIC + struct.pack("<ii", width, height) + np.ascontiguousarray(flow, "<f4").tobytes())


def read_pfm(path: Path) -> np.ndarray:
    """Return the values of a .pfm file, top row first: HW float32 of a gray file ("Pf"), HW3 of a color file ("PF").

    Both byte orders are supported. Only the sign of the scale is used, as for Scene Flow and most other files.

    Raises:
        DataError: the header is wrong, the size does not match the file, or a value is NaN or infinite.
    """
    return _read_pfm(path, flow=False)


def _read_pfm(path: Path, flow: bool) -> np.ndarray:
    """Return the values of :func:`read_pfm` or, if `flow`, only the first two of three channels, HW2."""
    with open_file(path) as file:
        header = _PFM_HEADER.match(file.read(64))
        if header is None:
            raise DataError(f"{path}: not a .pfm file, its first lines are not PF or Pf, width and height, and scale")
        kind, *numbers = header.groups()
        width, height, scale = int(numbers[0]), int(numbers[1]), float(numbers[2])
        channels = 3 if kind == b"PF" else 1
        check_size(path, width, height)
        if scale == 0:
            raise DataError(f"{path}: the scale is 0, its sign must give the byte order")
        if flow and channels != 3:
            raise DataError(f"{path}: a gray .pfm holds no flow, which has two channels of three")
        claimed = header.end() + 4 * channels * width * height
        _check_bytes(path, os.fstat(file.fileno()).st_size, claimed, f"{height}x{width} of .pfm")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Rows are stored bottom-up; a single strided copy from the page cache reverses them. The first two channels of a
    # pixel are copied as one complex number: 540x960 takes 0.6 ms, against 1.3 ms by channel and 4.5 ms as [..., :2].
    order, row = "<" if scale < 0 else ">", 4 * channels * width
    shape, item = ((height, width), "c8") if flow else ((height, width * channels), "f4")
    stored = np.ndarray(
        shape, order + item, mapped, header.end() + (height - 1) * row, (-row, 12 if flow else 4)
    )  # the last row of the file first
    values = _finite(path, stored.astype("<" + item).view("<f4").reshape(-1))
    return values.reshape((height, width) if channels == 1 else (height, width, 2 if flow else 3))


def write_pfm(path: Path, values: np.ndarray, little_endian: bool = True) -> None:
    """Write `values`, HW or HW3, as a gray or color .pfm file.

    Raises:
        DataError: the shape is wrong, or a value is NaN or infinite.
    """
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3) or values.size == 0:
        raise DataError(f"{path}: a .pfm holds HW or HW3, got {'x'.join(map(str, values.shape))}")
    _finite(path, values)
    height, width = values.shape[:2]
    header = f"{'PF' if values.ndim == 3 else 'Pf'}\n{width} {height}\n{-1.0 if little_endian else 1.0}\n"
    path.write_bytes(header.encode() + values[::-1].astype("<f4" if little_endian else ">f4").tobytes())


def read_kitti_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow in a KITTI .png, HW2 float32 in pixels, 0 where unknown, and a mask of known vectors, HW bool.

    A pixel stores (u, v, valid) in 16 bits each, with u = (stored - 2^15) / 64.

    Raises:
        DataError: the file is damaged, not a PNG with three 16-bit channels, or has channels in another order.
    """
    data = read_file(path)
    check_png(path, data)
    stored = decode(path, data, cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[2] != 3:
        kind = f"{'x'.join(map(str, stored.shape))} {stored.dtype}"
        raise DataError(f"{path}: KITTI flow is HxWx3 uint16, this PNG is {kind}")
    valid = stored[..., 0] > 0  # cv2 gives the channels in the order valid, v, u
    if (stored[..., 0] != valid * stored[..., 0].max()).any():
        raise DataError(f"{path}: the third channel must be 0 or 1, whether flow is known; are the channels reversed?")
    flow = np.empty((*valid.shape, 2), np.float32)
    for channel in range(2):
        flow[..., channel] = (stored[..., 2 - channel].astype(np.float32) - 32768) * (valid / np.float32(64))
    return flow, valid


def write_kitti_flow(path: Path, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write `flow`, HW2 in pixels within [-512, 512), and the mask of known vectors (HW bool) as KITTI's 16-bit PNG.

    Raises:
        DataError: the shape is wrong, a value is NaN or infinite, or known flow exceeds 512 pixels.
    """
    _check_written_flow(path, flow, valid)
    valid = np.ones(flow.shape[:2], dtype=bool) if valid is None else valid
    stored = np.rint(np.where(valid[..., None], flow, 0).astype(np.float64) * 64 + 32768)
    if stored.min() < 0 or stored.max() > 65535:
        raise DataError(f"{path}: KITTI's format holds flow within [-512, 512) pixels, got {np.abs(flow[valid]).max()}")
    pixels = np.dstack([valid, stored[..., 1], stored[..., 0]]) * valid[..., None]
    path.write_bytes(cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes())


def _check_bytes(path: Path, size: int, claimed: int, what: str) -> None:
    if size != claimed:
        state = "truncated" if size < claimed else "too long"
        raise DataError(f"{path}: {state}, {size:,} bytes where {what} takes {claimed:,}")


def _finite(path: Path, values: np.ndarray) -> np.ndarray:
    # If a value is NaN or infinite, so is the sum of squares, which is three times faster but may also overflow.
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
