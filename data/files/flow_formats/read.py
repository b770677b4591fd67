"""Read flow from a file of any format: .flo, .pfm, .npy or KITTI's .png.

Readers return the values as written, or raise :class:`data.types.DataError` with the path if a file is truncated,
oversized or not finite. Damage is detected in all headers and everywhere in a PNG, but not in the values of .flo and
.pfm files, which have no checksum.
"""

from pathlib import Path

import numpy as np

from data.files.flow_formats.checks import sum_of_squares
from data.files.flow_formats.flo import UNKNOWN_FLOW, read_flo
from data.files.flow_formats.kitti import read_kitti_flow
from data.files.flow_formats.pfm import read_pfm_flow
from data.files.images import open_file
from data.types import DataError
from mtsp.metrics.flow import KNOWN_FLOW

FLOW_SUFFIXES = (".flo", ".pfm", ".npy", ".png")
"""Suffixes of files of flow."""


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
        flow = read_pfm_flow(path)
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
    if sum_of_squares(flow) <= KNOWN_FLOW**2:  # the fastest check; it implies that no value is larger
        return flow, None
    known = np.abs(flow) <= KNOWN_FLOW
    valid = known[..., 0] & known[..., 1]
    if valid.all():
        return flow, None
    flow[~valid] = 0
    return flow, valid
