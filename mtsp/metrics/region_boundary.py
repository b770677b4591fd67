"""Region similarity J and boundary accuracy F of two masks, as the DAVIS benchmark measures them.

After Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016,
section 4, with the definitions of the official 2016 and 2017 evaluation code. Results equal those of that code to the
last digit. Masks are binary: pixels other than 0 belong to the object.

The compiled loop packs 64 pixels of a row into a word. Without numba, a plain numpy version gives the same results.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mtsp.metrics.checks import require_numbers
from mtsp.metrics.kernels.jit import Array, as_numpy, compiled, frozen

BOUND = 0.008
"""Largest distance of matching boundary pixels, as a fraction of the image diagonal: 8 pixels at 480x854."""


def region_similarity(prediction: Array, truth: Array) -> float:
    """Return J, the intersection over union of two HW masks; 1 if both are empty."""
    return region_and_boundary(prediction, truth)[0]


def boundary_measure(prediction: Array, truth: Array, bound: float = BOUND) -> float:
    """Return F, the harmonic mean of the precision and recall of the boundary pixels of two HW masks.

    A pixel is on the boundary if it differs from its right, lower or lower-right neighbor. A boundary pixel matches if
    the other mask has a boundary pixel within a disk around it. F is 1 if neither mask has a boundary, and 0 if only
    one mask has one.

    Args:
        prediction: HW, not 0 = object.
        truth: HW, not 0 = object.
        bound: radius of the disk: below 1, a fraction of the image diagonal, rounded up to pixels; from 1, in pixels.
    """
    return region_and_boundary(prediction, truth, bound)[1]


def region_and_boundary(prediction: Array, truth: Array, bound: float = BOUND) -> tuple[float, float]:
    """Return J and F of two HW masks.

    Raises:
        ValueError: the masks are not HW, differ in size, or do not hold integers (see
            :func:`~mtsp.metrics.checks.require_numbers`).
        TypeError: an argument is neither a numpy array nor a torch tensor.
    """
    ours, theirs = as_pair(prediction, truth)
    if not ours.size:
        return 1.0, 1.0
    shared, either, our_edge, their_edge, our_matches, their_matches = _counts(ours, theirs, bound)
    region = shared / either if either else 1.0
    if not our_edge or not their_edge:
        return region, float(our_edge == their_edge)
    precision, recall = our_matches / our_edge, their_matches / their_edge
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def as_pair(prediction: Array, truth: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks as numpy arrays; raise the errors of :func:`region_and_boundary`."""
    require_numbers(prediction=prediction, truth=truth)
    ours, theirs = as_numpy(prediction), as_numpy(truth)
    if ours.shape != theirs.shape or ours.ndim != 2:
        sizes = f"the predicted mask is {_size(ours)}, the true one {_size(theirs)}"
        raise ValueError(f"{sizes}; they must be HW and of the same size")
    if np.issubdtype(ours.dtype, np.inexact) or np.issubdtype(theirs.dtype, np.inexact):
        raise ValueError(f"masks of type {ours.dtype} and {theirs.dtype}; compare scores with a threshold first")
    return ours, theirs


def _size(mask: np.ndarray) -> str:
    return "x".join(map(str, mask.shape)) or "a single number"


def _counts(ours: np.ndarray, theirs: np.ndarray, bound: float) -> list[int]:
    """Return six numbers of pixels.

    These are the pixels in both masks, in either mask, on our boundary, on their boundary, on our boundary and near
    theirs, and on their boundary and near ours.
    """
    if not 0 <= bound < math.inf:
        raise ValueError(f"bound {bound}: expected pixels from 1 up, or a fraction of the diagonal from 0 up")
    height, width = ours.shape
    radius = math.ceil(bound if bound >= 1 else bound * math.hypot(height, width))
    disk = _disk(min(radius, 2 * max(height, width)), min(radius, height - 1))
    ours, theirs = _object(ours), _object(theirs)
    code = _kernel()
    if code is None:
        return _numpy_counts(ours, theirs, disk)
    counts = np.zeros(6, np.int64)
    code(frozen(ours), frozen(theirs), disk, counts)
    return counts.tolist()


def _object(mask: np.ndarray) -> np.ndarray:
    """Return the mask as a C-contiguous uint8 array in which the object is not 0."""
    mask = mask.view(np.uint8) if mask.dtype == np.bool_ else mask
    return np.ascontiguousarray(mask if mask.dtype == np.uint8 else (mask != 0).view(np.uint8))


@functools.lru_cache
def _disk(radius: int, rows: int) -> np.ndarray:
    """Return half the width of a disk at 0..rows rows from its center: x*x + y*y <= radius**2."""
    disk = np.array([math.isqrt(radius * radius - y * y) for y in range(rows + 1)], dtype=np.int64)
    disk.flags.writeable = False
    return disk


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    return compiled(_count_pair, calls=(_pack, _find_edges, _near, _bits))


def _count_pair(  # pragma: no cover, runs as machine code
    ours: np.ndarray, theirs: np.ndarray, disk: np.ndarray, counts: np.ndarray
) -> None:
    """Fill in `counts` for two masks, in the order of :func:`_counts`.

    Words are stored as columns x rows, with an empty column on both sides: pixel x of row y is bit x % 64 of the word
    [x // 64 + 1, y].
    """
    height, width = ours.shape
    columns = width // 64 + 3
    work = np.empty((7, columns, height), np.uint64)
    for place in range(4):
        for y in range(height):
            work[place, 0, y] = work[place, columns - 1, y] = 0
    mask, other, edges, other_edges = work[0], work[1], work[2], work[3]
    _pack(ours, mask)
    _pack(theirs, other)
    for column in range(1, columns - 1):
        a, b = mask[column], other[column]
        for y in range(height):
            counts[0] += np.int64(_bits(a[y] & b[y]))
            counts[1] += np.int64(_bits(a[y] | b[y]))
    rows, seen = np.zeros(height, np.uint64), np.zeros(columns, np.uint64)
    counts[2] = _find_edges(mask, width, edges, rows, seen)
    counts[3] = _find_edges(other, width, other_edges, rows, seen)
    if counts[2] == 0 or counts[3] == 0:
        return
    top, bottom, left, right = 0, height, 1, columns - 1
    while rows[top] == 0:
        top += 1
    while rows[bottom - 1] == 0:
        bottom -= 1
    while seen[left] == 0:
        left += 1
    while seen[right - 1] == 0:
        right -= 1
    counts[4] = _near(other_edges, edges, top, bottom, left, right, disk, work[4:])
    counts[5] = _near(edges, other_edges, top, bottom, left, right, disk, work[4:])


def _pack(mask: np.ndarray, words: np.ndarray) -> None:  # pragma: no cover, runs as machine code
    height, width = mask.shape
    whole = width // 64
    for y in range(height):
        row = mask[y]
        for column in range(whole):
            pixels = row[column * 64 : column * 64 + 64]
            word = np.uint64(0)
            for bit in range(64):
                word |= np.uint64(pixels[bit] != 0) << np.uint64(bit)
            words[column + 1, y] = word
        pixels, word = row[whole * 64 :], np.uint64(0)
        for bit in range(pixels.size):
            word |= np.uint64(pixels[bit] != 0) << np.uint64(bit)
        words[whole + 1, y] = word


def _find_edges(  # pragma: no cover, runs as machine code
    words: np.ndarray, width: int, edges: np.ndarray, rows: np.ndarray, seen: np.ndarray
) -> int:
    """Fill in the boundary and return its number of pixels; mark the rows and word columns with boundary pixels.

    The last row and column are repeated beyond the mask, so `words` receives one more pixel in each row.
    """
    height, last, spare = words.shape[1], (width - 1) // 64 + 1, width // 64 + 1
    one, top, end = np.uint64(1), np.uint64(63), np.uint64((width - 1) % 64)
    beyond, source = words[spare], words[last]
    for y in range(height):
        beyond[y] |= (source[y] >> end & one) << np.uint64(width % 64)
    total = np.uint64(0)
    for column in range(1, spare + 1):
        here, right, found = words[column], words[column + 1], edges[column]
        inside = (one << np.uint64(width % 64)) - one if column == spare else ~np.uint64(0)
        count, some = np.uint64(0), np.uint64(0)
        for y in range(height - 1):
            pixel, below = here[y], here[y + 1]
            beside, across = pixel >> one | right[y] << top, below >> one | right[y + 1] << top
            edge = (pixel ^ beside | pixel ^ below | pixel ^ across) & inside
            found[y] = edge
            rows[y] |= edge
            some |= edge
            count += _bits(edge)
        edge = (here[height - 1] ^ (here[height - 1] >> one | right[height - 1] << top)) & inside
        found[height - 1] = edge
        rows[height - 1] |= edge
        seen[column] |= some | edge
        total += count + _bits(edge)
    return np.int64(total)  # pyright: ignore[reportReturnType] (an int only outside of compiled code)


def _near(  # pragma: no cover, runs as machine code
    edges: np.ndarray,
    others: np.ndarray,
    top: int,
    bottom: int,
    left: int,
    right: int,
    disk: np.ndarray,
    work: np.ndarray,
) -> int:
    """Return the number of pixels of `others` within the disk around any pixel of `edges`.

    Both have pixels only inside the box. `edges` are widened step by step and added to the rows at which the disk is
    that wide. A step is at most one more than the width so far: a longer one would leave a gap at the side of the box.
    """
    height, distance, reach = bottom - top, disk.size - 1, 0
    wide, wider, grown = work[0], work[1], work[2]
    for column in range(left - 1, right + 1):
        edge, a, b, c = edges[column, top:bottom], wide[column], wider[column], grown[column]
        outside = column < left or column == right
        for y in range(height):
            a[y] = np.uint64(0) if outside else edge[y]
            b[y] = c[y] = 0
    while distance >= 0:
        while reach < disk[distance]:
            step = min(disk[distance] - reach, reach + 1, 63)
            by, back = np.uint64(step), np.uint64(64 - step)
            for column in range(left, right):
                before, here, after, result = wide[column - 1], wide[column], wide[column + 1], wider[column]
                for y in range(height):
                    word = here[y]
                    result[y] = word | word << by | word >> by | before[y] >> back | after[y] << back
            wide, wider, reach = wider, wide, reach + step
        if distance < height:
            for column in range(left, right):
                upper, lower = wide[column, : height - distance], wide[column, distance:height]
                above, below = grown[column, : height - distance], grown[column, distance:height]
                for y in range(height - distance):
                    below[y] |= upper[y]
                for y in range(height - distance):
                    above[y] |= lower[y]
        distance -= 1
    total = np.uint64(0)
    for column in range(left, right):
        near, other = grown[column], others[column, top:bottom]
        for y in range(height):
            total += _bits(near[y] & other[y])
    return np.int64(total)  # pyright: ignore[reportReturnType] (an int only outside of compiled code)


def _bits(word: Any) -> Any:  # pragma: no cover, runs as machine code
    """Return how many bits of a uint64 are set, in a form that LLVM compiles to one instruction."""
    word -= word >> np.uint64(1) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + (word >> np.uint64(2) & np.uint64(0x3333333333333333))
    word = word + (word >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return word * np.uint64(0x0101010101010101) >> np.uint64(56)


def _numpy_counts(ours: np.ndarray, theirs: np.ndarray, disk: np.ndarray) -> list[int]:
    """Return the result of :func:`_counts` without numba, which is many times slower."""
    ours, theirs = ours != 0, theirs != 0
    our_edge, their_edge = _numpy_edge(ours), _numpy_edge(theirs)
    pairs = (ours & theirs, ours | theirs, our_edge, their_edge)
    matches = (our_edge & _numpy_grown(their_edge, disk), their_edge & _numpy_grown(our_edge, disk))
    return [int(np.count_nonzero(mask)) for mask in (*pairs, *matches)]


def _numpy_edge(mask: np.ndarray) -> np.ndarray:
    """Return the boundary pixels; the last row and column are repeated beyond the mask."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def _numpy_grown(edge: np.ndarray, disk: np.ndarray) -> np.ndarray:
    """Return the pixels within the disk around any edge pixel.

    For each distance in rows, the edges are widened to the disk's width at that distance.
    """
    height, width = edge.shape
    sums, column = np.zeros((height, width + 1), np.int64), np.arange(width)
    np.cumsum(edge, axis=1, out=sums[:, 1:])
    grown = np.zeros_like(edge)
    for distance, reach in enumerate(disk.tolist()):
        wide = sums[:, np.minimum(column + reach + 1, width)] > sums[:, np.maximum(column - reach, 0)]
        grown[distance:] |= wide[: height - distance]
        grown[: height - distance] |= wide[distance:]
    return grown
