"""Select the classes of a source domain to pre-train on for a target domain.

There are two methods, both based on the distances between n source and m target classes:

- :func:`ranking`, the method of DSTL: rank each class as a separate domain, nearest first. It prefers classes that are
  near the target as a whole to classes that are very near to a few target classes.
- :func:`greedy`: repeatedly add the class that brings the whole set, weighted by images, nearest to the target.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mtsp.transfer.distances import class_weights, emd, single_class, transport

_EQUAL = 1e-12  # as a fraction of the largest distance: smaller differences between sets are ignored


class SelectionPath(NamedTuple):
    """Selected classes, and the distance of the set to the target at each size."""

    classes: list[int]  # rows of the cost matrix, in the order selected
    distances: list[float]  # Earth Mover's Distances of the sets of the first 1, 2, ... `classes`
    solved: int  # number of transport problems solved


def ranking(cost_matrix: np.ndarray, target: np.ndarray, k: int) -> list[int]:
    """Return the `k` source classes nearest to the target, nearest first, each taken as a domain of its own.

    This follows the description in DSTL; the released code has no selection step. For arguments and errors, see
    :func:`greedy`.
    """
    if not 1 <= k <= len(cost_matrix):
        raise ValueError(f"cannot select {k} of {len(cost_matrix)} classes; select from 1 to {len(cost_matrix)}")
    return np.argsort(single_class(cost_matrix, target), kind="stable")[:k].tolist()


def selection_path(
    cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray, order: Sequence[int]
) -> SelectionPath:
    """Return the Earth Mover's Distances of the sets of the first 1, 2, ... classes of `order`."""
    order = list(order)
    prefixes = (order[: size + 1] for size in range(len(order)))
    return SelectionPath(order, [emd(cost_matrix[p], source[p], target) for p in prefixes], len(order))


def greedy(
    cost_matrix: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    k: int,
    progress: Callable[[int], None] = lambda size: None,
) -> SelectionPath:
    """Return `k` source classes; each step adds the class that brings the set nearest to the target.

    Nearest means the smallest Earth Mover's Distance between set and target, with the classes of the set weighted by
    their images. At some size, the greedy set may be farther away than the set of that size that the ranking selects.
    The greedy set is then replaced by that set, so at every size from 1 to k the distance is at most that of the
    ranking. The classes for a smaller `k` need not be the first ones for a larger `k`.

    The result is the same as if the transport problem of every candidate were solved in every step, up to 1e-12 of the
    largest distance, but takes less work. The dual prices of one problem give lower bounds for all others, so
    candidates are solved in the order of their bounds, each solution tightens the bounds, and candidates with a bound
    above the smallest distance found are never solved.

    Args:
        cost_matrix: n x m distances between classes.
        source: number of images of each source class.
        target: number of images of each target class.
        k: number of classes to select, from 1 to n.
        progress: called with the size of the set after each step.

    Raises:
        ValueError: `k` is not between 1 and n; for other errors, see :func:`mtsp.transfer.distances.transport`.
    """
    ranked = selection_path(cost_matrix, source, target, ranking(cost_matrix, target, k))
    equal = _EQUAL * float(cost_matrix.max())
    first = ranked.classes[0]
    chosen, curve, solved = [first], ranked.distances[:1], ranked.solved
    prices = cost_matrix[first]
    for size in range(2, k + 1):
        step = _best_addition(cost_matrix, source, target, chosen, prices)
        solved += step.solved
        grown = [*chosen, step.added]
        if step.distance > ranked.distances[size - 1] + equal and set(grown) != set(ranked.classes[:size]):
            chosen, curve = ranked.classes[:size], ranked.distances[:size]
            prices = transport(cost_matrix[chosen], source[chosen], target).prices
        else:
            chosen, curve, prices = grown, [*curve, step.distance], step.prices
        progress(size)
    return SelectionPath(chosen, curve, solved)


class _Addition(NamedTuple):
    added: int
    distance: float
    prices: np.ndarray
    solved: int


def _best_addition(
    cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray, chosen: list[int], prices: np.ndarray
) -> _Addition:
    """Return the best class to add to `chosen`. Any `prices` are valid, but those of `chosen` save the most work."""
    equal = _EQUAL * float(cost_matrix.max())
    bounds = _bounds(cost_matrix, source, target, chosen, prices)
    best: _Addition | None = None
    solved = 0
    while True:
        candidate = int(bounds.argmin())
        if best is not None and bounds[candidate] >= best.distance - equal:
            return best._replace(solved=solved)
        rows = [*chosen, candidate]
        found = transport(cost_matrix[rows], source[rows], target)
        solved += 1
        if best is None or found.distance < best.distance:
            best = _Addition(candidate, found.distance, found.prices, solved)
        np.maximum(bounds, _bounds(cost_matrix, source, target, chosen, found.prices), out=bounds)
        bounds[candidate] = np.inf


def _bounds(
    cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray, chosen: list[int], prices: np.ndarray
) -> np.ndarray:
    """Return lower bounds on the distance if a class is added to `chosen`; infinity for classes already chosen."""
    rest = (cost_matrix - prices).min(axis=1)  # the largest u with u_i + v_j <= d_ij, where v are the prices
    means = (source[chosen] @ rest[chosen] + source * rest) / (source[chosen].sum() + source)
    bounds = means + prices @ class_weights(target)
    bounds[chosen] = np.inf
    return bounds


def union(selections: Iterable[Sequence[int]]) -> list[int]:
    """Return the classes of all `selections` without repetition, in the order in which they first appear.

    Subset A of DSTL is such a union of the 200 classes nearest to each of seven targets; subset B is a union of 400,
    100, 50 and 50 classes.
    """
    return list(dict.fromkeys(index for selection in selections for index in selection))
