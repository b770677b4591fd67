"""Compute the sums of flow errors in three ways: with a compiled loop, with numpy, and with torch on other devices.

Their results are the same up to rounding. All compute errors in the precision of the flow. numpy and torch sum them in
float64; the compiled loop (`flow_loops.py`) uses float64 only for the sums of blocks of pixels.
"""

import math
from typing import Any

import numpy as np

from mtsp.metrics.kernels.flow_loops import BAND, KNOWN_FLOW, SUMS, adder
from mtsp.metrics.kernels.jit import in_threads, threads

_PIXELS_FOR_THREADS = 1 << 16  # for fewer pixels, waking another thread takes longer than summing
_ANGLE = SUMS.index("angle")
_ERRORS = slice(SUMS.index("error_slow"), SUMS.index("error_fast") + 1)


def host_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None, angular: bool) -> np.ndarray:
    """Return the sums of each image, B x len(SUMS), of B2HW flow and BHW validity; angles are NaN unless `angular`."""
    kind = np.float32 if np.result_type(prediction, truth, np.float32).itemsize == 4 else np.float64
    prediction, truth = prediction.astype(kind, copy=False), truth.astype(kind, copy=False)
    images, _, height, width = prediction.shape
    if not prediction.size:
        return np.zeros((images, len(SUMS)))
    usable = np.broadcast_to(np.ones(width, np.bool_), (images, height, width)) if valid is None else valid
    usable = usable if usable.dtype.itemsize == 1 else usable != 0
    per_image = -(-height // BAND)
    bands = np.zeros((images * per_image, len(SUMS)))

    def rows_of(band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, rows = band // per_image, slice(band % per_image * BAND, (band % per_image + 1) * BAND)
        ours, theirs = (np.ascontiguousarray(flow[image, :, rows]) for flow in (prediction, truth))
        return ours, theirs, usable[image, rows]  # flow is contiguous, since numpy sums in memory order

    def add_in_numpy(part: slice) -> None:
        for band in range(part.start, part.stop):
            bands[band] = numpy_sums(*rows_of(band), angular)

    add = adder(prediction, truth, usable, angular, bands) or add_in_numpy
    parts = 4 * threads() if usable.size > _PIXELS_FOR_THREADS else 1
    size = -(-len(bands) // parts)
    in_threads(add, [slice(start, min(start + size, len(bands))) for start in range(0, len(bands), size)])
    sums = bands.reshape(images, per_image, len(SUMS)).sum(axis=1)
    if np.isfinite(sums[:, : _ANGLE + angular]).all():
        return sums
    # Sum again in float64 where squares overflowed float32, as the finite flow of a diverged network may do.
    for band in np.flatnonzero(~np.isfinite(bands[:, _ERRORS]).all(axis=1)):
        ours, theirs, known = rows_of(int(band))
        bands[band] = numpy_sums(ours.astype(np.float64), theirs.astype(np.float64), known, angular)
    for band in np.flatnonzero(np.isnan(bands[:, _ANGLE])) if angular else ():
        bands[band, _ANGLE] = numpy_sums(*rows_of(int(band)), angular)[_ANGLE]
    return bands.reshape(images, per_image, len(SUMS)).sum(axis=1)


def numpy_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, angular: bool) -> np.ndarray:
    """Return the sums of one image with numpy; both 2HW arrays have the same type."""
    with np.errstate(over="ignore", invalid="ignore"):
        terms = _terms(np, prediction, truth, valid != 0, angular)
    sums = np.array([term.sum(dtype=np.float64) for term in terms])
    sums[_ANGLE] = np.degrees(sums[_ANGLE])
    return sums


def torch_sums(prediction: Any, truth: Any, valid: Any, angular: bool) -> np.ndarray:
    """Return the sums of B2HW tensors, computed on the prediction's device; only 12 values per image are copied."""
    import torch

    prediction, truth = prediction.detach(), torch.as_tensor(truth, device=prediction.device)
    kind = torch.promote_types(torch.promote_types(prediction.dtype, truth.dtype), torch.float32)
    if any(not flow.is_floating_point() and flow.element_size() > 2 for flow in (prediction, truth)):
        kind = torch.float64  # as in numpy
    prediction, truth = prediction.to(kind), truth.to(kind)
    usable = True if valid is None else torch.as_tensor(valid, device=prediction.device) != 0
    terms = _terms(torch, prediction, truth, usable, angular)
    sums = torch.stack([term.sum(dim=(1, 2), dtype=torch.float64) for term in terms], dim=1).cpu().numpy()
    sums[:, _ANGLE] = np.degrees(sums[:, _ANGLE])
    large = np.flatnonzero(~np.isfinite(sums[:, _ERRORS]).all(axis=1))
    if len(large) and kind == torch.float32:  # as :func:`host_sums` does
        place = torch.from_numpy(large).to(prediction.device)
        known = None if valid is None else torch.as_tensor(valid, device=prediction.device)[place]
        sums[large] = torch_sums(prediction[place].double(), truth[place].double(), known, angular)
    return sums


def _terms(xp: Any, prediction: Any, truth: Any, usable: Any, angular: bool) -> list[Any]:
    """Return the terms that each pixel adds to the sums, in the order of `SUMS`; angles are in radians.

    The terms are masked without boolean indexing, which takes longer than the arithmetic. An angle is the arctangent of
    cross product over dot product of the two vectors (dx, dy, 1); an arccosine would lose all angles below 0.02 degrees
    to rounding. Both products are divided by the largest component, which keeps them finite.

    Args:
        xp: numpy or torch.
        prediction: ...2HW.
        truth: ...2HW, of the same type as `prediction`.
        usable: ...HW bool, or True for all pixels.
        angular: whether to compute angles; if False, they are NaN.
    """
    known = (xp.abs(truth) <= KNOWN_FLOW).all(axis=-3) & usable
    finite = xp.isfinite(prediction).all(axis=-3)
    used = known & finite
    difference = prediction - truth
    square = xp.where(used, xp.square(difference).sum(axis=-3), 0)
    speed = xp.where(known, xp.square(truth).sum(axis=-3), 0)
    error = xp.sqrt(square)
    slow, fast = speed < 100, speed >= 1600
    errors = [xp.where(bin_, error, 0) for bin_ in (slow, ~(slow | fast), fast)]
    if angular:
        scale = 1 / xp.amax(xp.abs(prediction), axis=-3, keepdims=True).clip(min=1)
        across, along = difference * scale, (prediction * scale * truth).sum(axis=-3) + scale[..., 0, :, :]
        normal = truth[..., 0, :, :] * across[..., 1, :, :] - truth[..., 1, :, :] * across[..., 0, :, :]
        length = xp.sqrt(xp.square(across).sum(axis=-3) + xp.square(normal))
        angle = xp.where(used, xp.arctan2(length, along), 0)
    else:
        angle = xp.full_like(error, math.nan)
    outlier = (error > 3) & (400 * square > speed)
    return [used, known & ~finite, used & slow, used & fast, *errors, error > 1, error > 3, error > 5, outlier, angle]
