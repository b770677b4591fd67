"""Sums that come out the same on one process and on many."""

import math
from collections.abc import Iterable


class Totals:
    """Sums of columns of numbers that do not depend on how the terms were ordered or grouped.

    Beside every sum, which is the exact one rounded, stands what the rounding took (:func:`math.fsum` of both): a total
    holds 106 bits. Infinite and NaN terms make the sum what they would make any sum, and so do finite ones that add up
    to more than a float can hold, even if others would take it back.
    """

    def __init__(self, columns: int) -> None:
        self.high, self.low = [0.0] * columns, [0.0] * columns

    def add(self, columns: Iterable[Iterable[float]]) -> None:
        """Add to every total the terms of its column; columns need not have the same length.

        Raises:
            ValueError: another number of columns; nothing was added.
        """
        sums = [_exact_sum([*column, *held]) for column, *held in zip(columns, self.high, self.low, strict=True)]
        self.high, self.low = map(list, zip(*sums, strict=True))

    def merge(self, other: "Totals") -> None:
        """Add all that was added to `other`."""
        self.add(zip(other.high, other.low, strict=True))

    def values(self) -> list[float]:
        """Return the sums."""
        return list(self.high)


def _exact_sum(terms: list[float]) -> tuple[float, float]:
    """Return the sum, rounded, and what the rounding took."""
    try:
        total = math.fsum(terms)
        return total, math.fsum([*terms, -total]) if math.isfinite(total) else 0.0
    except (OverflowError, ValueError):  # beyond all floats, or infinity less itself
        return sum(terms), 0.0
