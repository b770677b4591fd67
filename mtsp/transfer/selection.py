"""Select the classes of a source domain to pre-train on for a target domain.

There are two ways, both on the distances between n source and m target classes:

- :func:`ranking`, DSTL's: rank each class as a domain of its own, the nearest first. It favors classes near the target
  as a whole over those very near to a few of its classes.
- :func:`greedy`: add, again and again, the class that brings the whole set, weighted by images, nearest to the target.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mtsp.transfer.distances import class_weights, emd, single_class, transport

_EQUAL = 1e-12  # of the largest distance: two sets closer than this are equally good


class SelectionPath(NamedTuple):
    """A selected set and its distance at each size."""

    classes: list[int]  # rows of the cost matrix, in the order chosen
    distances: list[float]  # Earth Mover's Distances of the first 1, 2, ... of `classes`, their weights scaled to sum 1
    solved: int  # number of transport problems solved


def ranking(cost_matrix: np.ndarray, target: np.ndarray, k: int) -> list[int]:
    """Return the `k` source classes nearest to the target, each as a domain of its own, the nearest first.

    As DSTL describes it; its released code has no selection step. Arguments and errors as for :func:`greedy`.
    """
    if not 1 <= k <= len(cost_matrix):
        raise ValueError(f"{k} classes cannot be chosen from {len(cost_matrix)}; choose from 1 to {len(cost_matrix)}")
    return np.argsort(single_class(cost_matrix, target), kind="stable")[:k].tolist()


def selection_path(
    cost_matrix: np.ndarray, source: np.ndarray, target: np.ndarray, order: Sequence[int]
) -> SelectionPath:
    """Return the Earth Mover's Distances of the first 1, 2, ... classes of `order`."""
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
    """Return `k` source classes, each the one that brings the set of those before it nearest to the target.

    Nearest means the smallest Earth Mover's Distance between set and target, with the set's classes weighted by their
    images. Greedy steps alone may at some size end farther away than the ranking of that size. The set then becomes the
    ranking's and continues from there, so the first 1, 2, ..., k classes returned are never farther than the first 1,
    2, ..., k of the ranking. A smaller `k` need not give the first classes of a larger one.

    The choice is the same as when every candidate is solved at every step, up to 1e-12 of the largest distance, with
    less work: the dual prices of one transport problem bound all others from below, so candidates are solved in the
    order of their bounds, each solution sharpens the bounds, and a candidate whose bound is above the best distance
    found is never solved.

    Args:
        cost_matrix: n x m distances.
        source: n numbers of images.
        target: m numbers of images.
        k: from 1 to n.
        progress: called with the size of the set after each step.

    Raises:
        ValueError: there are no `k` classes, or see :func:`mtsp.transfer.distances.transport`.
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
    """Return the class that is best added to `chosen`. Any `prices` are valid; those of `chosen` save the most work."""
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
    """Return a lower bound on the distance of `chosen` plus each class; infinity for those already in `chosen`."""
    rest = (cost_matrix - prices).min(axis=1)  # the largest u with u_i + v_j <= d_ij for these prices v
    means = (source[chosen] @ rest[chosen] + source * rest) / (source[chosen].sum() + source)
    bounds = means + prices @ class_weights(target)
    bounds[chosen] = np.inf
    return bounds


def union(selections: Iterable[Sequence[int]]) -> list[int]:
    """Return the classes of all `selections`, each once, in the order they first come.

    DSTL's subset A is such a union, of the 200 classes nearest to each of seven targets; B is one of 400, 100, 50, 50.
    """
    return list(dict.fromkeys(index for selection in selections for index in selection))
