"""Read and write flow in KITTI's 16-bit PNG files."""

from pathlib import Path

import cv2
import numpy as np

from data.files.flow_formats.checks import check_written_flow
from data.files.images import check_png, decode, read_file
from data.types import DataError


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
    check_written_flow(path, flow, valid)
    valid = np.ones(flow.shape[:2], dtype=bool) if valid is None else valid
    stored = np.rint(np.where(valid[..., None], flow, 0).astype(np.float64) * 64 + 32768)
    if stored.min() < 0 or stored.max() > 65535:
        raise DataError(f"{path}: KITTI's format holds flow within [-512, 512) pixels, got {np.abs(flow[valid]).max()}")
    pixels = np.dstack([valid, stored[..., 1], stored[..., 0]]) * valid[..., None]
    path.write_bytes(cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes())
