"""Sums that come out the same on one process and on many."""

import math
from collections.abc import Iterable


class Totals:
    """Sums of columns of numbers that do not depend on how the terms were ordered or grouped.

    Beside every sum stands what its rounding took, each of the two an exact sum rounded once (:func:`math.fsum`). So a
    total holds 106 bits, and is rounded when it is read. Infinite and NaN terms make the sum what they would make any
    sum.
    """

    def __init__(self, columns: int) -> None:
        self.high, self.low = [0.0] * columns, [0.0] * columns

    def add(self, columns: Iterable[Iterable[float]]) -> None:
        """Add to every total the terms of its column; columns need not have the same length."""
        for place, column in enumerate(columns):
            terms = [*column, self.high[place], self.low[place]]
            self.high[place], self.low[place] = _exact_sum(terms)

    def merge(self, other: "Totals") -> None:
        """Add all that was added to `other`."""
        self.add(zip(other.high, other.low, strict=True))

    def values(self) -> list[float]:
        """Return the sums."""
        return [high + low for high, low in zip(self.high, self.low, strict=True)]


def _exact_sum(terms: list[float]) -> tuple[float, float]:
    """Return the sum, rounded, and what the rounding took."""
    try:
        total = math.fsum(terms)
        return total, math.fsum([*terms, -total]) if math.isfinite(total) else 0.0
    except (OverflowError, ValueError):  # beyond all floats, or infinity less itself
        return sum(terms), 0.0
