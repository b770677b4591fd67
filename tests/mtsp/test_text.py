"""What messages have in common."""

import pytest

from mtsp.text import first_names


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, ""), (1, "0"), (10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"), (11, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")],
)
def test_ten_names_are_shown_and_that_there_are_more(count: int, said: str) -> None:
    assert first_names([str(number) for number in range(count)]) == said
