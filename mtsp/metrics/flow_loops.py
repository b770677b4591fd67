"""The sums of flow errors, in three forms: a compiled loop, numpy, and torch for other devices.

Their numbers are the same but for rounding. All compute an error in the precision of the flow; numpy and torch add in
float64. The compiled loop reads every array once, where it lies, and keeps nothing: it adds up the errors of `_BLOCK`
neighbors in the precision of the flow, too, and the sums of these in float64. Errors are not negative, so an addition
of float32 is off by 2^-24 of the sum of the block at most, and a sum by 512 x 2^-24 = 3.1e-5 of itself at the very
worst (rounding always the same way, on a machine without vector registers); of an image as a rule by 1e-8 (angles,
whose arctangent is a series, by 1e-7). This does not depend on how many images there are. Counts are exact.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from mtsp.metrics.native import compiled, frozen, in_threads, threads

KNOWN_FLOW = 1e6
"""A flow component of more pixels than this stands for "unknown" (this many is still known). Middlebury's code says
1e9 and its files 1.7e9; no true vector is near either."""

SUMS = (
    *("pixels", "lost", "slow", "fast", "error_slow", "error_mid", "error_fast"),
    *("over_1", "over_3", "over_5", "fl", "angle"),
)
"""What is summed: known pixels with a finite prediction; known pixels without one; pixels with a true length below
10 px, and of 40 px or more; the errors of the three speed bins, in px; pixels with an error above 1, 3, 5 px; Fl;
angular errors, in degrees."""

_BAND = 32  # rows added up before anything else: the same whatever the batch and the threads, and so the numbers
_BLOCK = 512  # pixels of a row added up in the precision of the flow: float64 would halve the width of the vectors
_FAR = 1e9  # px; the compiled loop leaves the angles of a block to numpy if its errors add up to more: floats overflow
_ANGLE = SUMS.index("angle")
_ERRORS = slice(SUMS.index("error_slow"), SUMS.index("error_fast") + 1)


def host_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None, angular: bool) -> np.ndarray:
    """Return B x len(SUMS) of B2HW arrays and a BHW one; angles are NaN unless `angular`."""
    kind = np.float32 if np.result_type(prediction, truth, np.float32).itemsize == 4 else np.float64
    prediction, truth = prediction.astype(kind, copy=False), truth.astype(kind, copy=False)
    images, _, height, width = prediction.shape
    if not prediction.size:
        return np.zeros((images, len(SUMS)))
    usable = np.broadcast_to(np.ones(width, np.bool_), (images, height, width)) if valid is None else valid
    usable = usable if usable.dtype.itemsize == 1 else usable != 0
    per_image = -(-height // _BAND)
    bands = np.zeros((images * per_image, len(SUMS)))
    code = _kernel()

    def block(band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, rows = band // per_image, slice(band % per_image * _BAND, (band % per_image + 1) * _BAND)
        return prediction[image, :, rows], truth[image, :, rows], usable[image, rows]

    def add_in_numpy(part: slice) -> None:
        for band in range(part.start, part.stop):
            bands[band] = numpy_sums(*block(band), angular)
        again(part)

    def again(part: slice) -> None:
        """Add up once more in float64 where squares were too large for float32: a diverged network has finite flow."""
        for band in part.start + np.flatnonzero(~np.isfinite(bands[part, _ERRORS]).all(axis=1)):
            ours, theirs, known = block(int(band))
            bands[band] = numpy_sums(ours.astype(np.float64), theirs.astype(np.float64), known, angular)

    def add(part: slice) -> None:
        _compiled_sums(code, prediction, truth, usable, angular, part, bands)
        again(part)
        for band in np.flatnonzero(np.isnan(bands[part, _ANGLE])) if angular else ():
            bands[part.start + band, _ANGLE] = numpy_sums(*block(part.start + band), angular)[_ANGLE]

    size = -(-len(bands) // (4 * threads()))
    parts = [slice(start, min(start + size, len(bands))) for start in range(0, len(bands), size)]
    in_threads(add if code else add_in_numpy, parts)
    return bands.reshape(images, per_image, len(SUMS)).sum(axis=1)


def numpy_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, angular: bool) -> np.ndarray:
    """Return the sums of one 2HW block, without boolean indexing, which costs more than the arithmetic."""
    known = (np.abs(truth) <= KNOWN_FLOW).all(axis=0) & (valid != 0)
    finite = np.isfinite(prediction).all(axis=0)
    used = known & finite
    with np.errstate(over="ignore", invalid="ignore"):
        difference = prediction - truth
        square = np.square(difference).sum(axis=0)
        speed = np.where(known, np.square(truth).sum(axis=0), 0)
    error = np.sqrt(np.where(used, square, 0))
    slow, fast = speed < 100, speed >= 1600
    error_slow, error_fast = np.where(slow, error, 0), np.where(fast, error, 0)
    error_mid = np.where(slow | fast, 0, error)
    outlier = (error > 3) & (400 * np.square(error) > speed)
    counts = [known & ~finite, used & slow, used & fast]
    angle = _angles(*(np.where(used, flow, 0) for flow in (prediction, truth, difference))) if angular else math.nan
    return np.array(
        [np.count_nonzero(used), *map(np.count_nonzero, counts)]
        + [bin_.sum(dtype=np.float64) for bin_ in (error_slow, error_mid, error_fast)]
        + [np.count_nonzero(error > limit) for limit in (1, 3, 5)]
        + [np.count_nonzero(outlier), np.degrees(np.sum(angle, dtype=np.float64))],
        dtype=np.float64,
    )


def _angles(prediction: np.ndarray, truth: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return the angles between (dx, dy, 1) of two finite 2HW flows, radians.

    The arctangent of cross product over dot product: an arccosine would lose all angles below 0.02 degrees to rounding.
    Both products are divided by the longest component, which keeps them finite.
    """
    scale = 1 / np.maximum(1, np.abs(prediction).max(axis=0))
    across = difference * scale
    normal = truth[0] * across[1] - truth[1] * across[0]
    along = (prediction * scale * truth).sum(axis=0) + scale
    return np.arctan2(np.sqrt(np.square(across).sum(axis=0) + np.square(normal)), along)


def torch_sums(prediction: Any, truth: Any, valid: Any, angular: bool) -> np.ndarray:
    """Return the sums of B2HW tensors, computed where the prediction lies; only 12 numbers an image leave it."""
    import torch

    prediction, truth = prediction.detach(), torch.as_tensor(truth, device=prediction.device)
    kind = torch.promote_types(torch.promote_types(prediction.dtype, truth.dtype), torch.float32)
    if any(not flow.is_floating_point() and flow.element_size() > 2 for flow in (prediction, truth)):
        kind = torch.float64  # as numpy has it
    prediction, truth = prediction.to(kind), truth.to(kind)
    known = (truth.abs() <= KNOWN_FLOW).all(dim=1)
    if valid is not None:
        known &= torch.as_tensor(valid, device=prediction.device) != 0
    finite = torch.isfinite(prediction).all(dim=1)
    used = known & finite
    difference = prediction - truth
    speed = torch.where(known, truth.square().sum(dim=1), 0)
    error = torch.where(used, difference.square().sum(dim=1), 0).sqrt()
    slow, fast = speed < 100, speed >= 1600
    terms = [used, known & ~finite, used & slow, used & fast]
    terms += [torch.where(bin_, error, 0) for bin_ in (slow, ~(slow | fast), fast)]
    terms += [error > 1, error > 3, error > 5, (error > 3) & (400 * error.square() > speed)]
    if angular:
        scale = 1 / prediction.abs().amax(dim=1, keepdim=True).clamp(min=1)
        (x, y), along = (difference * scale).unbind(1), (prediction * scale * truth).sum(dim=1) + scale[:, 0]
        normal = truth[:, 0] * y - truth[:, 1] * x
        terms += [torch.where(used, torch.atan2((x * x + y * y + normal * normal).sqrt(), along), 0)]
    else:
        terms += [torch.full_like(error, math.nan)]
    sums = torch.stack([term.sum(dim=(1, 2), dtype=torch.float64) for term in terms], dim=1).cpu().numpy()
    sums[:, _ANGLE] = np.degrees(sums[:, _ANGLE])
    large = np.flatnonzero(~np.isfinite(sums[:, _ERRORS]).all(axis=1))
    if len(large) and kind == torch.float32:  # as `again` does on the host
        place = torch.from_numpy(large).to(prediction.device)
        known = None if valid is None else torch.as_tensor(valid, device=prediction.device)[place]
        sums[large] = torch_sums(prediction[place].double(), truth[place].double(), known, angular)
    return sums


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    # Sums may be reordered, which is what makes the loop vector code; NaN and infinity must keep their meaning.
    calls = (_row, _flags, _add_block, _angles_of_block)
    return compiled(_add_bands, calls=calls, fastmath={"reassoc", "contract", "nsz"})


def _compiled_sums(
    code: Any,
    prediction: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
    angular: bool,
    part: slice,
    bands: np.ndarray,
) -> None:
    height, width = valid.shape[1:]
    arctangent = _arctangent(prediction.dtype.type) if angular else ()
    rows = np.empty((4, width), prediction.dtype)
    mask = np.empty(width, np.uint8)
    code(
        *_memory(prediction), *_memory(truth), *_memory(valid.view(np.uint8)),
        height, width, arctangent, rows, frozen(rows), mask, frozen(mask), part.start, part.stop, bands,
    )  # fmt: skip


def _memory(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the memory of `array` as one run of items, and where its items are in it: start, then a step per axis.

    So the loop is compiled once for all strides. Flow that lies as pairs is returned as N x 2, its steps in pairs.
    """
    size = array.itemsize
    if any(step % size for step in array.strides):
        array = np.ascontiguousarray(array)
    steps = [step // size for step in array.strides]
    ends = [(length - 1) * step for length, step in zip(array.shape, steps, strict=True)]
    start = -sum(end for end in ends if end < 0)
    lowest = array[tuple(slice(None, None, -1 if step < 0 else None) for step in steps)]
    run = 1 + sum(map(abs, ends))
    if array.ndim == 4 and steps[1] == 1 and steps[3] == 2:
        steps = [steps[0], steps[2], 2]
    return as_strided(lowest, (run,), (size,), writeable=False), (start, *steps)


@functools.cache
def _arctangent(kind: type) -> tuple[Any, ...]:
    """Return the coefficients of arctan(t) / t in powers of t * t, right to rounding of `kind` for t <= tan(pi / 8)."""
    degree, edge = 5 if kind is np.float32 else 12, math.tan(math.pi / 8) ** 2
    squares = (np.polynomial.chebyshev.chebpts1(degree + 1) + 1) / 2 * edge
    series = np.polynomial.Chebyshev.fit(squares, np.arctan(np.sqrt(squares)) / np.sqrt(squares), degree, [0, edge])
    return tuple(kind(power) for power in series.convert(kind=np.polynomial.Polynomial).coef)


def _add_bands(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, prediction_at: tuple[int, ...], truth: np.ndarray, truth_at: tuple[int, ...],
    valid: np.ndarray, valid_at: tuple[int, ...], height: int, width: int, arctangent: tuple[float, ...],
    rows: np.ndarray, frozen_rows: np.ndarray, mask: np.ndarray, frozen_mask: np.ndarray,
    first: int, last: int, bands: np.ndarray,
) -> None:  # fmt: skip
    """Write the sums of the bands `first` to `last` (without it) to `bands`; flow and validity as :func:`_memory`.

    Rows whose items are not neighbors are copied to `rows` (valid to `mask`) first; `frozen_...` are the same memory,
    of the type of the rest. So all layouts, and sums with and without angles, are added up by the same loop, and agree
    to the last bit. A condition on the length of a tuple is decided when it is compiled.
    """
    per_image = (height + _BAND - 1) // _BAND
    for band in range(first, last):
        image, top, sums = band // per_image, band % per_image * _BAND, bands[band]
        for y in range(top, min(top + _BAND, height)):
            ours = _row(prediction, prediction_at, image, y, width, rows[:2], frozen_rows[:2])
            theirs = _row(truth, truth_at, image, y, width, rows[2:4], frozen_rows[2:4])
            usable = _flags(valid, valid_at, image, y, width, mask, frozen_mask)
            for start in range(0, width, _BLOCK):
                stop = min(start + _BLOCK, width)
                errors = _add_block(ours, theirs, usable, start, stop, sums)
                if len(arctangent) == 0 or not errors <= _FAR:
                    sums[_ANGLE] = np.nan
                else:
                    sums[_ANGLE] += _angles_of_block(ours, theirs, usable, start, stop, arctangent) * (180 / math.pi)


def _row(  # pragma: no cover, runs as machine code
    memory: np.ndarray, at: tuple[int, ...], image: int, y: int, width: int, room: np.ndarray, frozen_room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the two components of a row of flow, each with step 1."""
    start = at[0] + image * at[1] + y * at[len(at) - 2]
    if len(at) == 4:
        pairs = memory[start : start + 2 * width]
        for x in range(width):
            room[0, x], room[1, x] = pairs[np.uint64(2 * x)], pairs[np.uint64(2 * x + 1)]
        return frozen_room[0], frozen_room[1]
    other, step = start + at[2], at[4]
    if step == 1:
        return memory[start : start + width], memory[other : other + width]
    for x in range(width):
        room[0, x], room[1, x] = memory[start + x * step], memory[other + x * step]
    return frozen_room[0], frozen_room[1]


def _flags(  # pragma: no cover, runs as machine code
    memory: np.ndarray, at: tuple[int, ...], image: int, y: int, width: int, room: np.ndarray, frozen_room: np.ndarray
) -> np.ndarray:
    """Return a row of the validity with step 1."""
    start, step = at[0] + image * at[1] + y * at[2], at[3]
    if step == 1:
        return memory[start : start + width]
    for x in range(width):
        room[x] = memory[start + x * step]
    return frozen_room


def _add_block(  # pragma: no cover, runs as machine code
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], usable: np.ndarray,
    start: int, stop: int, sums: np.ndarray,
) -> float:  # fmt: skip
    """Add to all sums but that of angles, and return the sum of the block's errors.

    Written so that LLVM makes vector code of the widest kind of it: all numbers of the type of the flow, counts too (a
    count of a block is exact in any), selections instead of branches, and what is not used masked once, as an error of
    0 and a speed of NaN, which is in no bin.
    """
    our_u, our_v = ours
    their_u, their_v = theirs
    kind = our_u.dtype.type
    zero, one, limit, infinity, no_speed = kind(0), kind(1), kind(KNOWN_FLOW), kind(np.inf), kind(np.nan)
    known_pixels, pixels, slow, fast = zero, zero, zero, zero
    over_1, over_3, over_5, fl = zero, zero, zero, zero
    error_slow, error_mid, error_fast = zero, zero, zero
    for x in range(np.uint64(start), np.uint64(stop)):
        a, b, c, d = their_u[x], their_v[x], our_u[x], our_v[x]
        known = (usable[x] != 0) & (abs(a) <= limit) & (abs(b) <= limit)
        used = known & (abs(c) < infinity) & (abs(d) < infinity)
        du, dv = c - a, d - b
        square = du * du + dv * dv
        error = math.sqrt(square if used else zero)
        speed = a * a + b * b if used else no_speed
        is_slow, is_fast = speed < kind(100), speed >= kind(1600)
        is_mid = (speed >= kind(100)) & ~is_fast
        known_pixels += one if known else zero
        pixels += one if used else zero
        slow += one if is_slow else zero
        fast += one if is_fast else zero
        error_slow += error if is_slow else zero
        error_mid += error if is_mid else zero
        error_fast += error if is_fast else zero
        over_1 += one if error > one else zero
        over_3 += one if error > kind(3) else zero
        over_5 += one if error > kind(5) else zero
        fl += one if (error > kind(3)) & (kind(400) * error * error > speed) else zero
    sums[0] += pixels
    sums[1] += known_pixels - pixels
    sums[2] += slow
    sums[3] += fast
    sums[4] += error_slow
    sums[5] += error_mid
    sums[6] += error_fast
    sums[7] += over_1
    sums[8] += over_3
    sums[9] += over_5
    sums[10] += fl
    return error_slow + error_mid + error_fast


def _angles_of_block(  # pragma: no cover, runs as machine code
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], usable: np.ndarray,
    start: int, stop: int, arctangent: tuple[float, ...],
) -> float:  # fmt: skip
    """Return the sum of the angles, radians, as :func:`_angles` computes them, without its scale. Vector code, too:
    the arctangent is a series, and the division one that does not raise.
    """
    our_u, our_v = ours
    their_u, their_v = theirs
    kind = our_u.dtype.type
    zero, limit, infinity = kind(0), kind(KNOWN_FLOW), kind(np.inf)
    quarter, half, whole, octant = kind(math.pi / 4), kind(math.pi / 2), kind(math.pi), kind(math.tan(math.pi / 8))
    angles = zero
    for x in range(np.uint64(start), np.uint64(stop)):
        a, b, c, d = their_u[x], their_v[x], our_u[x], our_v[x]
        known = (usable[x] != 0) & (abs(a) <= limit) & (abs(b) <= limit)
        used = known & (abs(c) < infinity) & (abs(d) < infinity)
        du, dv = c - a, d - b
        normal = a * dv - b * du
        across, along = math.sqrt(du * du + dv * dv + normal * normal), a * c + b * d + kind(1)
        ahead = abs(along)
        steep = across > ahead
        low, high = ahead if steep else across, across if steep else ahead
        turned = low > octant * high
        tangent = np.divide(low - high if turned else low, low + high if turned else high)
        power = tangent * tangent
        series = arctangent[len(arctangent) - 1]
        for term in range(len(arctangent) - 2, -1, -1):
            series = series * power + arctangent[term]
        angle = tangent * series + (quarter if turned else zero)
        angle = half - angle if steep else angle
        angle = whole - angle if along < zero else angle
        angles += angle if used else zero
    return angles
