"""Compiled loop that sums flow errors, with the accuracy stated by :func:`mtsp.metrics.flow.flow_sums`.

Every array is read from memory once. Angles, and blocks with NaN or unknown flow, are read again from the cache. The
errors of `_BLOCK` neighboring pixels are summed in the precision of the flow, and the block sums in float64. Errors are
not negative, so each float32 addition has an error of at most 2^-24 of the block's sum, and all of them together at
most 512 x 2^-24.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mtsp.metrics.kernels.jit import Steps, compiled, frozen, memory

KNOWN_FLOW = 1e6
"""Flow with a larger component, in pixels, is unknown. Middlebury's code uses 1e9 as limit, its files store 1.7e9."""

SUMS = (
    *("pixels", "lost", "slow", "fast", "error_slow", "error_mid", "error_fast"),
    *("over_1", "over_3", "over_5", "fl", "angle"),
)
"""Names of the sums of an image: number of known pixels with and without a finite prediction; number of pixels with a
true length below 10 px, and of at least 40 px; sum of the end-point errors in each of the three speed bins, in px;
number of pixels with an error above 1, 3 and 5 px; number of Fl outliers; sum of the angular errors, in degrees."""

_PIXELS, _LOST, _SLOW, _FAST, _ERROR_SLOW, _ERROR_MID, _ERROR_FAST, _OVER_1, _OVER_3, _OVER_5, _FL, _ANGLE = range(
    len(SUMS)
)

BAND = 32
"""Number of rows that are summed first. It is fixed, so that the sums do not depend on the batch or the threads."""

_BLOCK = 512  # pixels of a row summed in the precision of the flow; float64 would halve the vector width
_FAR = 1e9  # px; numpy computes the angles of a block with a larger error sum, since floats would overflow here

_Block = tuple[Any, Any, Any, Any, Any, Any]
"""A block of a row: first pixel, pixel after the last, and positions in memory of the row's predicted u and v, true u
and v."""


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    # Vector code requires that sums may be reordered. NaN and infinity must keep their meaning, and products must be
    # rounded before they are added, as in numpy, for every memory layout.
    calls = (_is_near, _begin, _copy_row, _vector, _unsigned, _add_block, _drop_lost, _angles_of_block)
    return compiled(_add_bands, calls=calls, fastmath={"reassoc", "nsz"})


def adder(
    prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, angular: bool, bands: np.ndarray
) -> Callable[[slice], None] | None:
    """Return a function that sums a slice of the bands and can be called in any thread; None without numba.

    Args:
        prediction: B2HW.
        truth: B2HW, of the same type as `prediction`.
        valid: BHW, one byte per pixel.
        angular: whether to sum angles. If False, or if floats would overflow, the sum of angles of a band is NaN.
        bands: receives the sums of each band of `BAND` rows, image after image, N x len(SUMS) float64.
    """
    code = _kernel()
    if code is None:
        return None
    height, width = valid.shape[1:]
    flows = (*_memory(prediction), *_memory(truth), *memory(valid.view(np.uint8)), height, width)
    arctangent = _arctangent(prediction.dtype.type) if angular else ()

    def add(part: slice) -> None:
        rows, mask = np.empty(4 * width, prediction.dtype), np.empty(width, np.uint8)
        code(*flows, arctangent, rows, frozen(rows), mask, frozen(mask), part.start, part.stop, bands)

    return add


def _memory(array: np.ndarray) -> tuple[np.ndarray, Steps]:
    """Return memory and steps of flow; four steps if u and v are stored as pairs, else five."""
    run, at = memory(array)
    return run, (at[0], at[1], at[3], 2) if array.ndim == 4 and (at[2], at[4]) == (1, 2) else at


@functools.cache
def _arctangent(kind: type) -> tuple[Any, ...]:
    """Return coefficients of arctan(t) / t in powers of t * t; at most 6 roundings off for t <= tan(pi / 8)."""
    degree, edge = 5 if kind is np.float32 else 12, math.tan(math.pi / 8) ** 2
    squares = (np.polynomial.chebyshev.chebpts1(degree + 1) + 1) / 2 * edge
    series = np.polynomial.Chebyshev.fit(squares, np.arctan(np.sqrt(squares)) / np.sqrt(squares), degree, [0, edge])
    return tuple(kind(power) for power in series.convert(kind=np.polynomial.Polynomial).coef)


def _add_bands(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, ours_at: Steps, truth: np.ndarray, theirs_at: Steps,
    valid: np.ndarray, valid_at: Steps, height: int, width: int, arctangent: tuple[float, ...],
    rows: np.ndarray, frozen_rows: np.ndarray, mask: np.ndarray, frozen_mask: np.ndarray,
    first: int, last: int, bands: np.ndarray,
) -> None:  # fmt: skip
    """Write the sums of the bands `first` to `last` - 1 to `bands`.

    Rows of flow that are not contiguous, neither as items nor as pairs, are first copied to `rows`, and such rows of
    validity to `mask`. `frozen_rows` and `frozen_mask` are read-only views of these, so that all arrays that are read
    have one type. Thus one loop handles all memory layouts, with and without angles, and the results agree to the last
    bit. The loop makes no views of arrays, since numba's reference counting took a third of the time.
    """
    ours_near, theirs_near, flags_near = _is_near(ours_at), _is_near(theirs_at), valid_at[3] == 1
    ours, theirs = prediction if ours_near else frozen_rows, truth if theirs_near else frozen_rows
    flags = valid if flags_near else frozen_mask
    per_image = (height + BAND - 1) // BAND
    for band in range(first, last):
        image, top = band // per_image, band % per_image * BAND
        for y in range(top, min(top + BAND, height)):
            (our_u, our_v), (their_u, their_v) = _begin(ours_at, image, y), _begin(theirs_at, image, y)
            if not ours_near:
                our_u, our_v = _copy_row(prediction, our_u, our_v, ours_at[-1], width, rows, 0)
            if not theirs_near:
                their_u, their_v = _copy_row(truth, their_u, their_v, theirs_at[-1], width, rows, 2 * width)
            k = valid_at[0] + image * valid_at[1] + y * valid_at[2]
            if not flags_near:
                for x in range(width):
                    mask[x] = valid[k + valid_at[3] * x]
                k = 0
            for start in range(0, width, _BLOCK):
                block = (start, min(start + _BLOCK, width), our_u, our_v, their_u, their_v)
                errors = _add_block(ours, ours_at, theirs, theirs_at, flags, k, block, True, bands, band)
                masked = errors < 0
                if masked:
                    bands[band, _LOST] += _drop_lost(ours, ours_at, theirs, theirs_at, flags, k, block, mask)
                    errors = _add_block(ours, ours_at, theirs, theirs_at, frozen_mask, 0, block, False, bands, band)
                if len(arctangent) == 0 or not errors <= _FAR:
                    bands[band, _ANGLE] = np.nan
                else:
                    known, at = (frozen_mask, 0) if masked else (flags, k)
                    angles = _angles_of_block(ours, ours_at, theirs, theirs_at, known, at, block, arctangent)
                    bands[band, _ANGLE] += angles * (180 / math.pi)


def _is_near(at: Steps) -> bool:  # pragma: no cover, runs as machine code
    """Return whether a row of flow is contiguous in memory, as items or as pairs."""
    return len(at) == 4 or at[-1] == 1


def _begin(at: Steps, image: int, y: int) -> tuple[int, int]:  # pragma: no cover, runs as machine code
    """Return the positions in memory of the two components of a row."""
    u = at[0] + image * at[1] + y * at[-2]
    return u, u + (1 if len(at) == 4 else at[2])


def _copy_row(  # pragma: no cover, runs as machine code
    run: np.ndarray, u: int, v: int, step: int, width: int, rows: np.ndarray, place: int
) -> tuple[int, int]:
    """Copy the two components of a row to `rows`, one after the other, and return their positions there."""
    for x in range(width):
        rows[place + x], rows[place + width + x] = run[u + step * x], run[v + step * x]
    return place, place + width


def _vector(  # pragma: no cover, runs as machine code
    run: np.ndarray, at: Steps, u: Any, v: Any, x: Any
) -> tuple[Any, Any]:
    """Return the two components of pixel `x` of a row that begins at `u` and `v` (pairs begin at `u`)."""
    if len(at) == 4:
        return run[u + np.uint64(2) * x], run[u + np.uint64(2) * x + np.uint64(1)]
    return run[u + x], run[v + x]


def _unsigned(block: _Block) -> _Block:  # pragma: no cover, runs as machine code
    """Return `block` as unsigned integers, since a check for negative indices would prevent vector code."""
    start, stop, our_u, our_v, their_u, their_v = block
    ours, theirs = (np.uint64(our_u), np.uint64(our_v)), (np.uint64(their_u), np.uint64(their_v))
    return np.uint64(start), np.uint64(stop), *ours, *theirs


def _add_block(  # pragma: no cover, runs as machine code
    ours: np.ndarray, ours_at: Steps, theirs: np.ndarray, theirs_at: Steps,
    usable: np.ndarray, k: Any, block: _Block, unsure: bool, bands: np.ndarray, band: int,
) -> float:  # fmt: skip
    """Add a block to all sums except those of angles and lost pixels, and return the sum of its errors.

    If `unsure`, first check that every usable pixel has a known truth and a finite prediction; if not, add nothing and
    return -1. The check uses the sum of all squares, which is faster than checking each pixel.

    LLVM generates the widest vector code for this form: all values have the type of the flow (which holds the counts of
    a block exactly), there are selections instead of branches, and unused pixels are masked once, with an error of 0
    and a speed of NaN, which is in no bin. With `squares += square + speed if used else zero` in place of `both = ...`
    the loop was not vectorized and eight times slower. Run the benchmark after a change.
    """
    start, stop, our_u, our_v, their_u, their_v = _unsigned(block)
    k = np.uint64(k)
    kind = ours.dtype.type
    zero, one, no_speed = kind(0), kind(1), kind(np.nan)
    pixels, slow, fast, squares = zero, zero, zero, zero
    over_1, over_3, over_5, fl = zero, zero, zero, zero
    error_slow, error_mid, error_fast = zero, zero, zero
    for x in range(start, stop):
        u, v = _vector(ours, ours_at, our_u, our_v, x)
        true_u, true_v = _vector(theirs, theirs_at, their_u, their_v, x)
        used = usable[k + x] != 0
        du, dv = u - true_u, v - true_v
        square, speed = du * du + dv * dv, true_u * true_u + true_v * true_v
        both = square + speed
        square = square if used else zero
        speed = speed if used else no_speed
        squares += both if used else zero
        error = math.sqrt(square)
        is_slow, is_fast = speed < kind(100), speed >= kind(1600)
        is_mid = (speed >= kind(100)) & ~is_fast
        pixels += one if used else zero
        slow += one if is_slow else zero
        fast += one if is_fast else zero
        error_slow += error if is_slow else zero
        error_mid += error if is_mid else zero
        error_fast += error if is_fast else zero
        over_1 += one if error > one else zero
        over_3 += one if error > kind(3) else zero
        over_5 += one if error > kind(5) else zero
        fl += one if (error > kind(3)) & (kind(400) * square > speed) else zero
    if unsure and not squares <= KNOWN_FLOW * KNOWN_FLOW:
        return -1.0
    bands[band, _PIXELS] += pixels
    bands[band, _SLOW] += slow
    bands[band, _FAST] += fast
    bands[band, _ERROR_SLOW] += error_slow
    bands[band, _ERROR_MID] += error_mid
    bands[band, _ERROR_FAST] += error_fast
    bands[band, _OVER_1] += over_1
    bands[band, _OVER_3] += over_3
    bands[band, _OVER_5] += over_5
    bands[band, _FL] += fl
    return float(error_slow + error_mid + error_fast)


def _drop_lost(  # pragma: no cover, runs as machine code
    ours: np.ndarray, ours_at: Steps, theirs: np.ndarray, theirs_at: Steps,
    usable: np.ndarray, k: Any, block: _Block, mask: np.ndarray,
) -> int:  # fmt: skip
    """Set `mask` for usable pixels with known truth and finite prediction; return the number of known pixels without a
    finite prediction."""
    start, stop, our_u, our_v, their_u, their_v = _unsigned(block)
    k = np.uint64(k)
    lost = 0
    for x in range(start, stop):
        u, v = _vector(ours, ours_at, our_u, our_v, x)
        true_u, true_v = _vector(theirs, theirs_at, their_u, their_v, x)
        known = (usable[k + x] != 0) & (abs(true_u) <= KNOWN_FLOW) & (abs(true_v) <= KNOWN_FLOW)
        finite = (abs(u) < np.inf) & (abs(v) < np.inf)
        mask[x] = known & finite
        lost += known & ~finite
    return lost


def _angles_of_block(  # pragma: no cover, runs as machine code
    ours: np.ndarray, ours_at: Steps, theirs: np.ndarray, theirs_at: Steps,
    usable: np.ndarray, k: Any, block: _Block, arctangent: tuple[float, ...],
) -> float:  # fmt: skip
    """Return the sum of the angles in radians. A series for the arctangent and np.divide, which does not raise, allow
    vector code."""
    start, stop, our_u, our_v, their_u, their_v = _unsigned(block)
    k = np.uint64(k)
    kind = ours.dtype.type
    zero, octant = kind(0), kind(math.tan(math.pi / 8))
    quarter, half, whole = kind(math.pi / 4), kind(math.pi / 2), kind(math.pi)
    angles = zero
    for x in range(start, stop):
        u, v = _vector(ours, ours_at, our_u, our_v, x)
        true_u, true_v = _vector(theirs, theirs_at, their_u, their_v, x)
        du, dv = u - true_u, v - true_v
        normal = true_u * dv - true_v * du
        across, along = math.sqrt(du * du + dv * dv + normal * normal), true_u * u + true_v * v + kind(1)
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
        angles += angle if usable[k + x] != 0 else zero
    return angles
