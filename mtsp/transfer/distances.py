"""How far apart two domains are: distances between their classes, and the Earth Mover's Distance over them.

Letters: n source classes, m target classes, D features.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np

GAMMA = 0.01
"""DSTL's, for features as they come from its ResNet-101: there, distances between domains are 38 to 64. Of features
with another scale, :func:`similarity` says little; the distance itself, or its ratio to the median distance between
classes, says more."""

_NEAR = 1e-4  # of the squared lengths: below, cancellation in a matrix product costs more than 5e-12 of a distance
_ROWS = 512  # source classes at a time: 8 MiB of 2048 features; of 128, two threads wait for each other more than work
_ITERATIONS = 1 << 30  # pivots; 5000 x 555 classes take some 50,000
_EXPONENT = 6  # the largest distance is solved as 32 to 64: POT's tolerance is a number, not a part of the distance
_GAP = 1e-9  # of the largest distance: what a solution may be from its proof of being the best


class Transport(NamedTuple):
    """The cheapest way to move a source domain onto a target domain."""

    distance: float
    """The Earth Mover's Distance, in the unit of the distances between classes."""

    plan: np.ndarray
    """n x m float64, sum 1: the share of all mass that goes from a source class to a target class."""

    prices: np.ndarray
    """m float64: a solution v of the dual problem. With u = min over j of (d_ij - v_j), u.a + v.b is the distance."""


def distances(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances between class means, n x m float64.

    By a matrix product, |x|^2 + |y|^2 - 2xy, of means that are first moved to their common center. Pairs so near that
    the difference would cancel are computed directly, so that equal means are 0 apart. Every distance is within 1e-11
    of itself, as long as its square is a number: from about 1e-150 to 1e150.

    Args:
        source: n x D.
        target: m x D.

    Raises:
        ValueError: the numbers of features differ.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            f"class means of shapes {source.shape} and {target.shape} cannot be compared; both domains need features "
            "of the same network"
        )
    center = target.mean(axis=0, dtype=np.float64)
    y = np.subtract(target, center, dtype=np.float64)
    lengths = np.vecdot(y, y)
    y *= -2
    squared = np.empty((len(source), len(target)))
    x = np.empty((min(len(source), _ROWS), source.shape[1]))
    for first in range(0, len(source), _ROWS):
        rows = slice(first, min(first + _ROWS, len(source)))
        _squared(source[rows], target, center, x[: rows.stop - first], y, lengths, squared[rows])
    return np.sqrt(squared, out=squared)


def _squared(
    source: np.ndarray,
    target: np.ndarray,
    center: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    lengths: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out` with the squared distances of some rows; `x` is memory for them, `y` is -2 times the centered targets.

    Few domains have a near pair, and the smallest of all says so in one cheap pass.
    """
    np.subtract(source, center, out=x)
    np.matmul(x, y.T, out=out)
    own = np.vecdot(x, x)
    out += own[:, None]
    out += lengths
    if not out.min(initial=np.inf) <= _NEAR * (own.max() + lengths.max(initial=0)):
        return
    near, to = np.nonzero(out <= _NEAR * (own[:, None] + lengths))
    for first in range(0, len(near), _ROWS):
        i, j = near[first : first + _ROWS], to[first : first + _ROWS]
        difference = np.subtract(source[i], target[j], dtype=np.float64)
        out[i, j] = np.vecdot(difference, difference)


def shares(counts: np.ndarray) -> np.ndarray:
    """Return the mass of each class: its share of the domain's images, float64, sum 1."""
    mass = np.asarray(counts, np.float64)
    return mass / mass.sum()


def emd(ground: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """Return the Earth Mover's Distance alone; arguments and errors as of :func:`transport`."""
    return transport(ground, source, target).distance


def transport(ground: np.ndarray, source: np.ndarray, target: np.ndarray) -> Transport:
    """Return the cheapest way to move one domain onto the other: exact, and proven so by a solution of the dual.

    With one source class, or one target class, there is only one way, and nothing to solve. Otherwise POT's network
    simplex works on the n x m distances; DSTL gave pyemd a square matrix of n + m rows, padded with zeros.

    Args:
        ground: n x m distances between classes.
        source: n numbers, the images of each source class.
        target: m numbers, the images of each target class. Both are scaled to sum 1.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite or negative, a domain without images; or POT is
            not installed.
        FloatingPointError: the solver stopped without a proof; never seen.
    """
    ground = np.ascontiguousarray(ground, np.float64)
    _check(ground, source, target)
    a, b = shares(source), shares(target)
    if len(a) == 1:
        return Transport(float(ground[0] @ b), b[None].copy(), ground[0].copy())
    if len(b) == 1:
        return Transport(float(a @ ground[:, 0]), a[:, None].copy(), np.zeros(1))
    plan, prices = _solve(ground, a, b)
    distance = float(np.vdot(plan, ground))
    gap = distance - lower_bound(ground, a, b, prices)
    if not abs(gap) <= _GAP * float(ground.max()):
        raise FloatingPointError(
            f"the solver's distance {distance} is {gap:g} from its proof for {ground.shape} classes"
        )
    return Transport(distance, plan, prices)


def lower_bound(ground: np.ndarray, a: np.ndarray, b: np.ndarray, prices: np.ndarray) -> float:
    """Return what no transport of mass `a` to mass `b` can cost less than, for any `prices`; m numbers."""
    return float((ground - prices).min(axis=1) @ a + prices @ b)


def single_class(ground: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the distance of each source class, as a domain of its own, to the target; n numbers.

    All mass then starts at one place: the Earth Mover's Distance is the mean distance to the target's images.
    """
    return ground @ shares(target)


def similarity(distance: float, gamma: float = GAMMA) -> float:
    """Return exp(-gamma * distance): 1 for equal domains, towards 0 far apart. See :data:`GAMMA` for its scale."""
    return math.exp(-gamma * distance)


def _solve(ground: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return plan and prices from POT; what it warns of, the proof notices.

    The distances are scaled by a power of two, which changes none of their digits, to those of DSTL's domains.
    """
    try:
        import ot
    except ImportError as error:
        raise ValueError("the distance between domains needs POT: pip install mtsp[transfer]") from error
    scale = math.ldexp(1, min(_EXPONENT - math.frexp(ground.max())[1], 1000))  # 2 ** 1024 is infinite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan, log = ot.emd(a, b, ground * scale, numItermax=_ITERATIONS, log=True, center_dual=False)
    return plan, log["v"] / scale


def _check(ground: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    if ground.shape != (len(source), len(target)) or not ground.size:
        raise ValueError(
            f"{len(source)} source classes and {len(target)} target classes need as many rows and columns of "
            f"distances, at least one of each; they are {ground.shape}"
        )
    if not np.isfinite(ground).all():
        raise ValueError("distances between classes are not finite; the features hold NaN or infinity")
    if ground.min() < 0:
        raise ValueError(f"distances between classes are 0 or more; the smallest is {ground.min():g}")
    for name, counts in (("source", source), ("target", target)):
        numbers = np.asarray(counts, np.float64)
        if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.max() > 0):
            raise ValueError(f"the numbers of images of the {name} classes must be 0 or more, and some more than 0")
        with np.errstate(over="ignore"):
            total = numbers.sum()
        if not np.isfinite(total):
            raise ValueError(f"the sum of the numbers of images of the {name} classes is not finite; scale them")
