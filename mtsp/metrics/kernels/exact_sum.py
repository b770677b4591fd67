"""Sums that do not depend on the number of processes."""

import math
from collections.abc import Iterable


class ExactSums:
    """One sum per column that does not depend on the order or grouping of the terms.

    Each sum is stored as the rounded exact sum (:func:`math.fsum`) and its rounding error, which together have 106
    bits. Infinite and NaN terms give the same result as in an ordinary sum. Finite terms that overflow a float give
    infinity, even if later terms would bring the sum back into range.
    """

    def __init__(self, columns: int) -> None:
        self.high, self.low = [0.0] * columns, [0.0] * columns

    def add(self, columns: Iterable[Iterable[float]]) -> None:
        """Add the terms of each column to its sum; columns may differ in length.

        Raises:
            ValueError: the number of columns is wrong; in this case nothing is added.
        """
        sums = [_exact_sum([*column, *held]) for column, *held in zip(columns, self.high, self.low, strict=True)]
        self.high, self.low = map(list, zip(*sums, strict=True))

    def merge(self, other: "ExactSums") -> None:
        """Add the sums of `other`."""
        self.add(zip(other.high, other.low, strict=True))

    def values(self) -> list[float]:
        """Return the sum of each column."""
        return list(self.high)


def _exact_sum(terms: list[float]) -> tuple[float, float]:
    """Return the rounded sum and its rounding error."""
    try:
        total = math.fsum(terms)
        return total, math.fsum([*terms, -total]) if math.isfinite(total) else 0.0
    except (OverflowError, ValueError):  # overflow, or infinity minus infinity
        return sum(terms), 0.0
