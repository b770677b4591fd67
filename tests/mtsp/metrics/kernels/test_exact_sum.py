"""Sums that do not depend on the order of their terms."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsp.metrics.kernels.exact_sum import ExactSums


def test_what_rounding_takes_from_a_sum_is_kept() -> None:
    totals = ExactSums(1)
    totals.add([[1e16, 1.0, -1e16]])  # plain floats: 0, as 1e16 + 1 is 1e16
    assert totals.values() == [1]


@settings(max_examples=60, deadline=None)
@given(terms=st.lists(st.floats(-1e12, 1e12), max_size=30), parts=st.integers(1, 4), seed=st.integers(0, 9))
def test_any_order_and_grouping_gives_the_exact_sum_rounded_once(terms: list[float], parts: int, seed: int) -> None:
    exact = float(sum(map(Fraction, terms), Fraction(0)))
    shuffled = np.random.default_rng(seed).permutation(np.array(terms, np.float64))
    merged = ExactSums(1)
    for part in np.array_split(shuffled, parts):
        one = ExactSums(1)
        one.add([part.tolist()])
        merged.merge(one)
    assert merged.values()[0] == pytest.approx(exact, rel=1e-15, abs=1e-15)


def test_a_sum_is_rounded_once_and_not_again_when_it_is_read() -> None:
    totals = ExactSums(1)  # 1 + 1.5 ulp - a little: nearer to 1 ulp than to 2
    for term in (1 + 2.0**-52, 2.0**-53, -(2.0**-120)):
        totals.add([[term]])
    assert totals.values() == [1 + 2.0**-52]


def test_another_number_of_columns_is_refused_and_nothing_is_added() -> None:
    totals = ExactSums(2)
    for columns in ([[1.0]], [[1.0], [2.0], [3.0]], []):
        with pytest.raises(ValueError, match="argument"):
            totals.add(columns)
    assert totals.values() == [0, 0]


def test_columns_are_summed_apart_and_infinity_stays() -> None:
    totals = ExactSums(3)
    totals.add([[1, 2], [math.inf, 5], [math.nan]])
    totals.add([[], [], []])
    totals.add([[4], [1], [1]])
    np.testing.assert_array_equal(totals.values(), [7, math.inf, math.nan])


def test_sums_beyond_all_floats_and_infinity_less_itself_are_what_floats_make_of_them() -> None:
    totals = ExactSums(2)
    totals.add([[1e308, 1e308], [math.inf, -math.inf]])
    np.testing.assert_array_equal(totals.values(), [math.inf, math.nan])
