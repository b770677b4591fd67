"""Checks of flow that is read or written."""

from pathlib import Path

import numpy as np

from data.types import DataError


def check_bytes(path: Path, size: int, claimed: int, what: str) -> None:
    """Raise DataError unless a file has as many bytes as `what`, which its header promises, takes."""
    if size != claimed:
        state = "truncated" if size < claimed else "too long"
        raise DataError(f"{path}: {state}, {size:,} bytes where {what} takes {claimed:,}")


def finite(path: Path, values: np.ndarray) -> np.ndarray:
    """Return the values; raise DataError if one of them is NaN or infinite."""
    # If a value is NaN or infinite, so is the sum of squares, which is three times faster but may also overflow.
    if not np.isfinite(sum_of_squares(values)) and not np.isfinite(values).all():
        raise DataError(f"{path}: {np.count_nonzero(~np.isfinite(values)):,} values are NaN or infinite")
    return values


def sum_of_squares(values: np.ndarray) -> float:
    """Return the sum of squares, which is infinite or NaN if a value is; it may also overflow."""
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        return float(np.dot(flat, flat))


def check_written_flow(path: Path, flow: np.ndarray, valid: np.ndarray | None) -> None:
    """Raise DataError if flow, HW2, or the mask of known vectors, HW bool, has another shape or values not finite."""
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise DataError(f"{path}: flow is HW2, got {'x'.join(map(str, flow.shape))}")
    if valid is not None and (valid.shape != flow.shape[:2] or valid.dtype != np.bool_):
        raise DataError(f"{path}: valid is HW bool like its flow {flow.shape}, got {valid.shape} {valid.dtype}")
    finite(path, flow)
