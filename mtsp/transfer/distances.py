"""Compute distances between the classes of two domains, and the Earth Mover's Distance (EMD) between the domains.

Dimensions: n source classes, m target classes, D features.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np

GAMMA = 0.01
"""Value used by DSTL for ResNet-101 features, with distances of 38 to 64 between domains. For other features, compare
distances instead of similarities, or the ratios of distances to the median distance between classes."""

_NEAR = 1e-4  # relative to squared lengths; for smaller values, cancellation causes relative errors above 5e-12
_ROWS = 512  # number of source classes at a time: 8 MiB at 2048 features; with 128, threads mostly wait
_ITERATIONS = 1 << 30  # maximum number of pivots; 5000 x 555 classes take about 50,000
_EXPONENT = 6  # distances are scaled until the largest is 32 to 64, because POT's tolerance is absolute
_GAP = 1e-9  # maximum duality gap of a solution, as a fraction of the largest distance


class Transport(NamedTuple):
    """The cheapest way to move a source domain onto a target domain.

    Attributes:
        distance: the Earth Mover's Distance, in the unit of the distances between classes.
        plan: n x m float64, sum 1: fraction of the total mass that moves from each source class to each target class.
        prices: m float64: solution v of the dual problem. With u_i = min over j of (d_ij - v_j) and class weights a
            (source) and b (target), the distance is u.a + v.b.
    """

    distance: float
    plan: np.ndarray
    prices: np.ndarray


def distances(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances, n x m float64, between the class means `source`, n x D, and `target`, m x D.

    They are computed as |x|^2 + |y|^2 - 2xy, with a matrix product, after subtracting the center of the target. For
    pairs so close that this would cancel, the difference is computed directly, so equal means have distance 0. The
    relative error is below 1e-11 for distances from about 1e-150 to 1e150.

    Raises:
        ValueError: the numbers of features differ.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            f"cannot compare class means of shapes {source.shape} and {target.shape}; both domains need features of "
            "the same network"
        )
    center = target.mean(axis=0, dtype=np.float64)
    y = np.subtract(target, center, dtype=np.float64)
    lengths = np.vecdot(y, y)
    y *= -2
    squared = np.empty((len(source), len(target)))
    buffer = np.empty((min(len(source), _ROWS), source.shape[1]))
    for first in range(0, len(source), _ROWS):
        rows, out = source[first : first + _ROWS], squared[first : first + _ROWS]
        x = np.subtract(rows, center, out=buffer[: len(rows)])
        np.matmul(x, y.T, out=out)
        own = np.vecdot(x, x)
        out += own[:, None]
        out += lengths
        if out.min(initial=np.inf) <= _NEAR * (own.max() + lengths.max(initial=0)):  # false for most domains
            _replace_near(out, own, lengths, rows, target)
    return np.sqrt(squared, out=squared)


def _replace_near(out: np.ndarray, own: np.ndarray, lengths: np.ndarray, rows: np.ndarray, target: np.ndarray) -> None:
    """Compute the squared distances of close pairs directly."""
    near, to = np.nonzero(out <= _NEAR * (own[:, None] + lengths))
    for first in range(0, len(near), _ROWS):
        i, j = near[first : first + _ROWS], to[first : first + _ROWS]
        difference = np.subtract(rows[i], target[j], dtype=np.float64)
        out[i, j] = np.vecdot(difference, difference)


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return the weight of each class: its fraction of the domain's images, float64, sum 1."""
    mass = np.asarray(counts, np.float64)
    return mass / mass.sum()


def emd(cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> float:
    """Return the Earth Mover's Distance; for arguments and errors, see :func:`transport`."""
    return transport(cost_matrix, source, target).distance


def transport(cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> Transport:
    """Return the exact optimal transport between two domains, verified by a solution of the dual problem.

    With one source class or one target class, the plan is known. Otherwise it is computed by the network simplex of POT
    from the n x m distances; DSTL used pyemd with a square matrix of n + m rows, padded with zeros.

    Args:
        cost_matrix: n x m distances between classes.
        source: number of images of each of the n source classes.
        target: number of images of each of the m target classes. Both are scaled to sum 1.

    Raises:
        ValueError: shapes do not match, values are negative or not finite, a domain has no images, or POT is not
            installed.
        FloatingPointError: the solution has a duality gap, which was never observed.
    """
    cost_matrix = np.ascontiguousarray(cost_matrix, np.float64)
    _check(cost_matrix, source, target)
    a, b = class_weights(source), class_weights(target)
    if len(a) == 1:
        return Transport(float(cost_matrix[0] @ b), b[None].copy(), cost_matrix[0].copy())
    if len(b) == 1:
        return Transport(float(a @ cost_matrix[:, 0]), a[:, None].copy(), np.zeros(1))
    plan, prices = _solve(cost_matrix, a, b)
    distance = float(np.vdot(plan, cost_matrix))
    gap = distance - float((cost_matrix - prices).min(axis=1) @ a + prices @ b)
    if not abs(gap) <= _GAP * float(cost_matrix.max()):
        raise FloatingPointError(
            f"the solution for {cost_matrix.shape} classes is not optimal: distance {distance}, duality gap {gap:g}"
        )
    return Transport(distance, plan, prices)


def single_class(cost_matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the distance from each source class, taken as a separate domain, to the target: n values.

    From a single class, the Earth Mover's Distance is the mean of its distances to the target classes, weighted by
    their images.
    """
    return cost_matrix @ class_weights(target)


def similarity(distance: float, gamma: float = GAMMA) -> float:
    """Return exp(-gamma * distance), which is 1 for equal domains and near 0 for distant ones. See :data:`GAMMA`."""
    return math.exp(-gamma * distance)


def _solve(cost_matrix: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return plan and prices from POT. Its warnings are suppressed because the caller checks the duality gap.

    Distances are scaled by a power of two, which is exact.
    """
    try:
        import ot
    except ImportError as error:
        raise ValueError("the distance between domains needs POT: pip install mtsp[transfer]") from error
    scale = math.ldexp(1, min(_EXPONENT - math.frexp(cost_matrix.max())[1], 1000))  # 2 ** 1024 is infinite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan, log = ot.emd(a, b, cost_matrix * scale, numItermax=_ITERATIONS, log=True, center_dual=False)
    return plan, log["v"] / scale


def _check(cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    if cost_matrix.shape != (len(source), len(target)) or not cost_matrix.size:
        raise ValueError(
            f"a cost matrix of shape {cost_matrix.shape} does not match {len(source)} source classes (rows) and "
            f"{len(target)} target classes (columns); both need at least one class"
        )
    if not np.isfinite(cost_matrix).all():
        raise ValueError("distances between classes are not finite; check the features for NaN and infinity")
    if cost_matrix.min() < 0:
        raise ValueError(f"distances between classes must be 0 or more, but the smallest is {cost_matrix.min():g}")
    for name, counts in (("source", source), ("target", target)):
        numbers = np.asarray(counts, np.float64)
        if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.max() > 0):
            raise ValueError(f"the numbers of images of the {name} classes must be 0 or more, and at least one above 0")
        with np.errstate(over="ignore"):
            total = numbers.sum()
        if not np.isfinite(total):
            raise ValueError(f"the sum of the numbers of images of the {name} classes is not finite; scale them")
