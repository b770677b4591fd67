"""Sums that come out the same on one process and on many."""

import numpy as np


class Totals:
    """Sums of float64 columns that do not depend on how the terms were ordered or grouped.

    Beside every sum stands what rounding took from it (the exact error of a sum of two floats: Knuth, "The Art of
    Computer Programming", volume 2, section 4.2.2, theorem B). So a total holds 106 bits and is rounded once, when it
    is read. Infinite and NaN terms make the sum what they would make any sum.
    """

    def __init__(self, columns: int) -> None:
        self.high, self.low = np.zeros(columns), np.zeros(columns)

    def add(self, terms: np.ndarray) -> None:
        """Add the rows of `terms`, N x columns."""
        high = np.concatenate([self.high[None], terms])
        low = self.low
        while len(high) > 1:
            if len(high) % 2:
                high = np.concatenate([high, np.zeros_like(high[:1])])
            high, lost = _exact_sum(high[::2], high[1::2])
            low = low + lost.sum(axis=0)
        self.high, self.low = high[0], low

    def merge(self, other: "Totals") -> None:
        """Add all that was added to `other`."""
        self.add(other.high[None])
        self.low = self.low + other.low

    def values(self) -> np.ndarray:
        """Return the sums."""
        return self.high + self.low


def _exact_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a + b rounded, and what the rounding took: their sum is exact."""
    with np.errstate(invalid="ignore"):  # infinity less itself
        total = a + b
        of_b = total - a
        lost = (a - (total - of_b)) + (b - of_b)
    return total, np.where(np.isfinite(lost), lost, 0)
