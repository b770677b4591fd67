"""Sums that are the same on one process and on many."""

import math
from collections.abc import Iterable


class ExactSums:
    """Sums of columns of numbers that do not depend on the order or grouping of the terms.

    Each sum is the exact one, rounded, kept together with its rounding error (:func:`math.fsum` of both): 106 bits.
    Infinite and NaN terms make the sum what they make any sum. So do finite terms that add up to more than a float
    holds, even if others would take it back.
    """

    def __init__(self, columns: int) -> None:
        self.high, self.low = [0.0] * columns, [0.0] * columns

    def add(self, columns: Iterable[Iterable[float]]) -> None:
        """Add the terms of each column to its sum; columns may differ in length.

        Raises:
            ValueError: another number of columns; nothing was added.
        """
        sums = [_exact_sum([*column, *held]) for column, *held in zip(columns, self.high, self.low, strict=True)]
        self.high, self.low = map(list, zip(*sums, strict=True))

    def merge(self, other: "ExactSums") -> None:
        """Add the sums of `other`."""
        self.add(zip(other.high, other.low, strict=True))

    def values(self) -> list[float]:
        """Return the sums."""
        return list(self.high)


def _exact_sum(terms: list[float]) -> tuple[float, float]:
    """Return the rounded sum and its rounding error."""
    try:
        total = math.fsum(terms)
        return total, math.fsum([*terms, -total]) if math.isfinite(total) else 0.0
    except (OverflowError, ValueError):  # beyond all floats, or infinity less itself
        return sum(terms), 0.0
