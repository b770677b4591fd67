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
_WORTH_THREADS = 1 << 16  # pixels; waking another thread takes longer than adding up fewer
_FAR = 1e9  # px; the compiled loop leaves the angles of a block to numpy if its errors add up to more: floats overflow
_ANGLE = SUMS.index("angle")
_ERRORS = slice(SUMS.index("error_slow"), SUMS.index("error_fast") + 1)

_Steps = tuple[int, ...]
"""Where the items of an array are in its memory: the first one, then the distance along each axis. Flow that lies as
pairs has no distance from u to v; how many numbers these are is known when a loop is compiled."""

_Block = tuple[Any, Any, Any, Any, Any, Any]
"""Pixels of a row: the first one, the one after the last, and where the row begins in memory: that of our u and v, and
of their u and v."""


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

    def block(band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, rows = band // per_image, slice(band % per_image * _BAND, (band % per_image + 1) * _BAND)
        return prediction[image, :, rows], truth[image, :, rows], usable[image, rows]

    def add_in_numpy(part: slice) -> None:
        for band in range(part.start, part.stop):
            bands[band] = numpy_sums(*block(band), angular)

    code = _kernel()
    add = _adder(code, prediction, truth, usable, angular, bands) if code else add_in_numpy
    parts = 4 * threads() if usable.size > _WORTH_THREADS else 1
    size = -(-len(bands) // parts)
    in_threads(add, [slice(start, min(start + size, len(bands))) for start in range(0, len(bands), size)])
    sums = bands.reshape(images, per_image, len(SUMS)).sum(axis=1)
    if np.isfinite(sums[:, : _ANGLE + angular]).all():
        return sums
    for band in np.flatnonzero(~np.isfinite(bands[:, _ERRORS]).all(axis=1)):
        ours, theirs, known = block(int(band))  # whose squares float32 cannot hold: a diverged network has finite flow
        bands[band] = numpy_sums(ours.astype(np.float64), theirs.astype(np.float64), known, angular)
    for band in np.flatnonzero(np.isnan(bands[:, _ANGLE])) if angular else ():
        bands[band, _ANGLE] = numpy_sums(*block(int(band)), angular)[_ANGLE]
    return bands.reshape(images, per_image, len(SUMS)).sum(axis=1)


def numpy_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, angular: bool) -> np.ndarray:
    """Return the sums of one 2HW block, without boolean indexing, which costs more than the arithmetic."""
    known = (np.abs(truth) <= KNOWN_FLOW).all(axis=0) & (valid != 0)
    finite = np.isfinite(prediction).all(axis=0)
    used = known & finite
    with np.errstate(over="ignore", invalid="ignore"):
        difference = prediction - truth
        square = np.where(used, np.square(difference).sum(axis=0), 0)
        speed = np.where(known, np.square(truth).sum(axis=0), 0)
        error = np.sqrt(square)
        outlier = (error > 3) & (400 * square > speed)
    slow, fast = speed < 100, speed >= 1600
    error_slow, error_fast = np.where(slow, error, 0), np.where(fast, error, 0)
    error_mid = np.where(slow | fast, 0, error)
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
    square = torch.where(used, difference.square().sum(dim=1), 0)
    error = square.sqrt()
    slow, fast = speed < 100, speed >= 1600
    terms = [used, known & ~finite, used & slow, used & fast]
    terms += [torch.where(bin_, error, 0) for bin_ in (slow, ~(slow | fast), fast)]
    terms += [error > 1, error > 3, error > 5, (error > 3) & (400 * square > speed)]
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
    # Sums may be reordered, which is what makes the loop vector code; NaN and infinity must keep their meaning, and
    # products be rounded before they are added, as numpy does it and whatever the order in memory.
    calls = (_is_near, _begin, _copy_row, _vectors, _unsigned, _add_block, _drop_lost, _angles_of_block)
    return compiled(_add_bands, calls=calls, fastmath={"reassoc", "nsz"})


def _adder(
    code: Any, prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray, angular: bool, bands: np.ndarray
) -> Callable[[slice], None]:
    """Return a function that writes the sums of a part of the bands, to be called in any thread."""
    height, width = valid.shape[1:]
    flows = (*_memory(prediction), *_memory(truth), *_memory(valid.view(np.uint8)), height, width)
    arctangent = _arctangent(prediction.dtype.type) if angular else ()

    def add(part: slice) -> None:
        rows, mask = np.empty(4 * width, prediction.dtype), np.empty(width, np.uint8)
        code(*flows, arctangent, rows, frozen(rows), mask, frozen(mask), part.start, part.stop, bands)

    return add


def _memory(array: np.ndarray) -> tuple[np.ndarray, _Steps]:
    """Return the memory of `array` as one run of items, and where its items are in it.

    So the loop is compiled once for all strides but those of pairs.
    """
    size = array.itemsize
    if any(step % size for step in array.strides):
        array = np.ascontiguousarray(array)
    steps = [step // size for step in array.strides]
    if array.flags.c_contiguous:
        return frozen(array.reshape(-1)), (0, *steps)
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
    prediction: np.ndarray, ours_at: _Steps, truth: np.ndarray, theirs_at: _Steps,
    valid: np.ndarray, valid_at: _Steps, height: int, width: int, arctangent: tuple[float, ...],
    rows: np.ndarray, frozen_rows: np.ndarray, mask: np.ndarray, frozen_mask: np.ndarray,
    first: int, last: int, bands: np.ndarray,
) -> None:  # fmt: skip
    """Write the sums of the bands `first` to `last` (without it) to `bands`; flow and validity as :func:`_memory`.

    Rows of flow of which neither the items nor pairs of them are neighbors are copied to `rows` first (of validity, to
    `mask`); `frozen_...` are the same memory, of the type of the rest. So all layouts, and sums with and without
    angles, are added up by the same loop, and agree to the last bit. Nothing in here makes a view of an array: numba
    would count the references to it, which took a third of the time.
    """
    ours_near, theirs_near, flags_near = _is_near(ours_at), _is_near(theirs_at), valid_at[3] == 1
    ours, theirs = prediction if ours_near else frozen_rows, truth if theirs_near else frozen_rows
    flags = valid if flags_near else frozen_mask
    per_image = (height + _BAND - 1) // _BAND
    for band in range(first, last):
        image, top = band // per_image, band % per_image * _BAND
        for y in range(top, min(top + _BAND, height)):
            (u, v), (a, b) = _begin(ours_at, image, y), _begin(theirs_at, image, y)
            if not ours_near:
                u, v = _copy_row(prediction, u, v, ours_at[-1], width, rows, 0)
            if not theirs_near:
                a, b = _copy_row(truth, a, b, theirs_at[-1], width, rows, 2 * width)
            k = valid_at[0] + image * valid_at[1] + y * valid_at[2]
            if not flags_near:
                for x in range(width):
                    mask[x] = valid[k + valid_at[3] * x]
                k = 0
            for start in range(0, width, _BLOCK):
                block = (start, min(start + _BLOCK, width), u, v, a, b)
                errors = _add_block(ours, ours_at, theirs, theirs_at, flags, k, block, True, bands, band)
                masked = errors < 0
                if masked:
                    bands[band, 1] += _drop_lost(ours, ours_at, theirs, theirs_at, flags, k, block, mask)
                    errors = _add_block(ours, ours_at, theirs, theirs_at, frozen_mask, 0, block, False, bands, band)
                if len(arctangent) == 0 or not errors <= _FAR:
                    bands[band, _ANGLE] = np.nan
                else:
                    known, at = (frozen_mask, 0) if masked else (flags, k)
                    angles = _angles_of_block(ours, ours_at, theirs, theirs_at, known, at, block, arctangent)
                    bands[band, _ANGLE] += angles * (180 / math.pi)


def _is_near(at: _Steps) -> bool:  # pragma: no cover, runs as machine code
    """Return whether the items of a row of flow, or pairs of them, are neighbors in memory."""
    return len(at) == 4 or at[-1] == 1


def _begin(at: _Steps, image: int, y: int) -> tuple[int, int]:  # pragma: no cover, runs as machine code
    """Return where the two components of a row begin."""
    u = at[0] + image * at[1] + y * at[-2]
    return u, u + (1 if len(at) == 4 else at[2])


def _copy_row(  # pragma: no cover, runs as machine code
    memory: np.ndarray, u: int, v: int, step: int, width: int, rows: np.ndarray, room: int
) -> tuple[int, int]:
    """Copy the two components of a row to `rows`, one after the other, and return where they begin there."""
    for x in range(width):
        rows[room + x], rows[room + width + x] = memory[u + step * x], memory[v + step * x]
    return room, room + width


def _vectors(  # pragma: no cover, runs as machine code
    memory: np.ndarray, at: _Steps, u: Any, v: Any, x: Any
) -> tuple[Any, Any]:
    """Return the two components of a pixel of a row that begins at `u` and `v`; a pair begins at `u`."""
    if len(at) == 4:
        return memory[u + np.uint64(2) * x], memory[u + np.uint64(2) * x + np.uint64(1)]
    return memory[u + x], memory[v + x]


def _unsigned(block: _Block) -> _Block:  # pragma: no cover, runs as machine code
    """Return the same numbers; an index that may be negative, for counting from the end, is no vector code."""
    start, stop, u, v, a, b = block
    return np.uint64(start), np.uint64(stop), np.uint64(u), np.uint64(v), np.uint64(a), np.uint64(b)


def _add_block(  # pragma: no cover, runs as machine code
    ours: np.ndarray, ours_at: _Steps, theirs: np.ndarray, theirs_at: _Steps,
    usable: np.ndarray, k: Any, block: _Block, unsure: bool, bands: np.ndarray, band: int,
) -> float:  # fmt: skip
    """Add to all sums but those of angles and lost pixels, and return the sum of the block's errors.

    If `unsure` whether all usable pixels have a known truth and a finite prediction, the sum of their squares tells it,
    which costs less than to look at each: if it is too large or NaN, nothing is added, and -1 returned.

    Written so that LLVM makes vector code of the widest kind of it: all numbers of the type of the flow, counts too (a
    count of a block is exact in any), selections instead of branches, and what is not used masked once, as an error of
    0 and a speed of NaN, which is in no bin.
    """
    start, stop, u, v, a, b = _unsigned(block)
    k = np.uint64(k)
    kind = ours.dtype.type
    zero, one, no_speed = kind(0), kind(1), kind(np.nan)
    pixels, slow, fast, squares = zero, zero, zero, zero
    over_1, over_3, over_5, fl = zero, zero, zero, zero
    error_slow, error_mid, error_fast = zero, zero, zero
    for x in range(start, stop):
        (true_u, true_v), (our_u, our_v) = _vectors(theirs, theirs_at, a, b, x), _vectors(ours, ours_at, u, v, x)
        used = usable[k + x] != 0
        du, dv = our_u - true_u, our_v - true_v
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
    bands[band, 0] += pixels
    bands[band, 2] += slow
    bands[band, 3] += fast
    bands[band, 4] += error_slow
    bands[band, 5] += error_mid
    bands[band, 6] += error_fast
    bands[band, 7] += over_1
    bands[band, 8] += over_3
    bands[band, 9] += over_5
    bands[band, 10] += fl
    return float(error_slow + error_mid + error_fast)


def _drop_lost(  # pragma: no cover, runs as machine code
    ours: np.ndarray, ours_at: _Steps, theirs: np.ndarray, theirs_at: _Steps,
    usable: np.ndarray, k: Any, block: _Block, mask: np.ndarray,
) -> int:  # fmt: skip
    """Write to `mask` which usable pixels have a known truth and a finite prediction; return how many lack that."""
    start, stop, u, v, a, b = _unsigned(block)
    k = np.uint64(k)
    lost = 0
    for x in range(start, stop):
        (true_u, true_v), (our_u, our_v) = _vectors(theirs, theirs_at, a, b, x), _vectors(ours, ours_at, u, v, x)
        known = (usable[k + x] != 0) & (abs(true_u) <= KNOWN_FLOW) & (abs(true_v) <= KNOWN_FLOW)
        finite = (abs(our_u) < np.inf) & (abs(our_v) < np.inf)
        mask[x] = known & finite
        lost += known & ~finite
    return lost


def _angles_of_block(  # pragma: no cover, runs as machine code
    ours: np.ndarray, ours_at: _Steps, theirs: np.ndarray, theirs_at: _Steps,
    usable: np.ndarray, k: Any, block: _Block, arctangent: tuple[float, ...],
) -> float:  # fmt: skip
    """Return the sum of the angles, radians, as :func:`_angles` computes them, without its scale. Vector code, too:
    the arctangent is a series, and the division one that does not raise.
    """
    start, stop, u, v, a, b = _unsigned(block)
    k = np.uint64(k)
    kind = ours.dtype.type
    zero, octant = kind(0), kind(math.tan(math.pi / 8))
    quarter, half, whole = kind(math.pi / 4), kind(math.pi / 2), kind(math.pi)
    angles = zero
    for x in range(start, stop):
        (true_u, true_v), (our_u, our_v) = _vectors(theirs, theirs_at, a, b, x), _vectors(ours, ours_at, u, v, x)
        du, dv = our_u - true_u, our_v - true_v
        normal = true_u * dv - true_v * du
        across, along = math.sqrt(du * du + dv * dv + normal * normal), true_u * our_u + true_v * our_v + kind(1)
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
