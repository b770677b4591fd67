"""Which classes of a source domain to pre-train on for a target domain.

Three ways, all on the distances between classes, n source x m target:

- :func:`ranking`, DSTL's: each class as a domain of its own, the nearest first. It favors classes that are near to the
  target as a whole over those that are very near to a few of its classes.
- :func:`greedy`: the set grows by the class with which all of it, each class as heavy as its images, comes nearest.
- :func:`neighbors`: for each target class the classes next to it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mtsp.transfer.distances import shares, single_class, transport

_EQUAL = 1e-12  # of the largest distance: two sets are as good as each other


class Growth(NamedTuple):
    """A selected set as it grew."""

    classes: list[int]
    """Rows of the distances, in the order chosen."""

    distances: list[float]
    """The Earth Mover's Distance of the first 1, 2, ... of `classes`, their masses scaled to sum 1."""

    solved: int
    """How many transport problems that took."""


def ranking(ground: np.ndarray, target: np.ndarray, k: int) -> list[int]:
    """Return the `k` source classes that are nearest to the target as domains of their own, the nearest first.

    Ranks each class alone, as DSTL describes; its released code has no selection step.

    Args:
        ground: n x m distances.
        target: m numbers of images.
        k: from 1 to n.

    Raises:
        ValueError: there are no `k` classes.
    """
    _require(k, len(ground))
    return np.argsort(single_class(ground, target), kind="stable")[:k].tolist()


def growth(ground: np.ndarray, source: np.ndarray, target: np.ndarray, order: Sequence[int]) -> Growth:
    """Return the Earth Mover's Distances of the first 1, 2, ... classes of `order`."""
    curve = [transport(ground[chosen], source[chosen], target).distance for chosen in _prefixes(order)]
    return Growth(list(order), curve, len(order))


def greedy(
    ground: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    k: int,
    progress: Callable[[int], None] = lambda size: None,
) -> Growth:
    """Return `k` source classes, each the one that brings the set with those before it nearest to the target.

    A set is nearest when the Earth Mover's Distance between it and the target is smallest, where its classes weigh as
    their images and sum to 1: every chosen class sends all it has. Such growth alone may at some size be farther than
    the ranking of that size, whose classes fit together by chance. Then the set becomes the ranking's, and grows on
    from there. So the first 1, 2, ..., k classes returned are never farther than the first 1, 2, ..., k of the ranking;
    the ones for a smaller `k` need not be the first of those for a larger one.

    The choice is that of solving every candidate at every step, within 1e-12 of the largest distance, for a small part
    of the work: prices that solve one transport problem bound all others from below, so candidates are solved best
    bound first, each solution sharpens the bounds, and no candidate whose bound is above the best found is solved.

    Args:
        ground: n x m distances.
        source: n numbers of images.
        target: m numbers of images.
        k: from 1 to n.
        progress: called with the size of the set each time it has grown.

    Raises:
        ValueError: there are no `k` classes, or see :func:`mtsp.transfer.distances.transport`.
    """
    ranked = growth(ground, source, target, ranking(ground, target, k))
    equal = _EQUAL * float(ground.max())
    first = ranked.classes[0]
    chosen, curve, solved = [first], ranked.distances[:1], ranked.solved
    prices = ground[first]
    for size in range(2, k + 1):
        step = _best_addition(ground, source, target, chosen, prices)
        solved += step.solved
        grown = [*chosen, step.added]
        if step.distance > ranked.distances[size - 1] + equal and set(grown) != set(ranked.classes[:size]):
            chosen, curve = ranked.classes[:size], ranked.distances[:size]
            prices = transport(ground[chosen], source[chosen], target).prices
        else:
            chosen, curve, prices = grown, [*curve, step.distance], step.prices
        progress(size)
    return Growth(chosen, curve, solved)


class _Addition(NamedTuple):
    added: int
    distance: float
    prices: np.ndarray
    solved: int


def _best_addition(
    ground: np.ndarray, source: np.ndarray, target: np.ndarray, chosen: list[int], prices: np.ndarray
) -> _Addition:
    """Return the class that is best added to `chosen`; any `prices` do, those of `chosen` save the most work."""
    equal = _EQUAL * float(ground.max())
    bounds = _bounds(ground, source, target, chosen, prices)
    best: _Addition | None = None
    solved = 0
    while True:
        candidate = int(bounds.argmin())
        if best is not None and bounds[candidate] >= best.distance - equal:
            return best._replace(solved=solved)
        rows = [*chosen, candidate]
        found = transport(ground[rows], source[rows], target)
        solved += 1
        if best is None or found.distance < best.distance:
            best = _Addition(candidate, found.distance, found.prices, solved)
        np.maximum(bounds, _bounds(ground, source, target, chosen, found.prices), out=bounds)
        bounds[candidate] = np.inf


def _bounds(
    ground: np.ndarray, source: np.ndarray, target: np.ndarray, chosen: list[int], prices: np.ndarray
) -> np.ndarray:
    """Return for every class what `chosen` with it is at least from the target; infinity for those of `chosen`."""
    rest = (ground - prices).min(axis=1)  # the best u for these prices v: u_i + v_j <= d_ij
    bounds = (source[chosen] @ rest[chosen] + source * rest) / (source[chosen].sum() + source) + prices @ shares(target)
    bounds[chosen] = np.inf
    return bounds


def nearest(ground: np.ndarray, count: int) -> np.ndarray:
    """Return for each target class its `count` nearest source classes, m x count, the nearest first."""
    _require(count, len(ground))
    return np.argsort(ground, axis=0, kind="stable")[:count].T


def neighbors(ground: np.ndarray, k: int) -> list[int]:
    """Return `k` source classes: the nearest one of each target class, then the second nearest of each, and so on.

    A class that is near to several target classes counts once, where it is nearest in rank. Within a round the nearer
    ones come first.

    Args:
        ground: n x m distances.
        k: from 1 to n.

    Raises:
        ValueError: there are no `k` classes.
    """
    _require(k, len(ground))
    columns = np.arange(ground.shape[1])
    ranks = np.empty(ground.shape, np.int64)
    ranks[np.argsort(ground, axis=0, kind="stable"), columns] = np.arange(len(ground))[:, None]
    rounds = ranks.min(axis=1)
    distance = np.where(ranks == rounds[:, None], ground, np.inf).min(axis=1)
    return np.lexsort((distance, rounds))[:k].tolist()


def united(selections: Iterable[Sequence[int]]) -> list[int]:
    """Return the classes of all `selections`, each once, in the order they first come.

    So DSTL makes its subset A, of the 200 classes nearest to each of seven targets, and B, of 400, 100, 50 and 50.
    """
    return list(dict.fromkeys(index for selection in selections for index in selection))


def _prefixes(order: Sequence[int]) -> Iterable[list[int]]:
    return (list(order[:size]) for size in range(1, len(order) + 1))


def _require(k: int, classes: int) -> None:
    if not 1 <= k <= classes:
        raise ValueError(f"{k} classes cannot be chosen from {classes}; choose from 1 to {classes}")
