"""Indices that are spread over a data set."""

import pytest

from mtsp.indices import evenly_spaced


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(10, 4, [0, 2, 5, 7]), (33, 16, list(range(0, 31, 2))), (3, 5, [0, 1, 2]), (5, 1, [0]), (0, 4, [])],
)  # i * 10 // 4 is 0, 2, 5, 7; i * 33 // 16 is 2 i up to i = 15
def test_indices_are_evenly_spaced(count: int, most: int, expected: list[int]) -> None:
    assert evenly_spaced(count, most) == expected
