"""Distances between classes and the Earth Mover's Distance between domains, against other solvers and by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron
from scipy.spatial.distance import cdist

from mtsp.transfer.distances import distances, emd, similarity, single_class, transport

pytest.importorskip("ot", reason="POT is not installed: pip install mtsp[transfer]")


def linear_program(cost_matrix: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Least cost of moving a to b, as the linear program that it is: a row sum and a column sum for each class."""
    n, m = cost_matrix.shape
    equal = np.concatenate(
        [kron(eye_array(n), np.ones((1, m))).toarray(), kron(np.ones((1, n)), eye_array(m)).toarray()]
    )
    found = linprog(cost_matrix.ravel(), A_eq=equal, b_eq=np.concatenate([a / a.sum(), b / b.sum()]), method="highs")
    assert found.success
    return found.fun


def domain(seed: int, classes: int, features: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.gamma(0.5, 1, (classes, features)), rng.integers(1, 300, classes)


def test_mass_goes_the_cheapest_way() -> None:
    """Sources at 0 and 10 with 3 and 1 images, targets at 1 and 12 with 2 each: 1/2 goes 0 -> 1, 1/4 goes 10 -> 12, and
    the last quarter must go 0 -> 12: 0.5 * 1 + 0.25 * 2 + 0.25 * 12 = 4."""
    cost_matrix = distances(np.array([[0.0], [10.0]]), np.array([[1.0], [12.0]]))
    found = transport(cost_matrix, np.array([3, 1]), np.array([2, 2]))
    assert found.distance == pytest.approx(4.0, abs=1e-12)
    np.testing.assert_allclose(found.plan, [[0.5, 0.25], [0.0, 0.25]], atol=1e-12)


def test_with_as_many_equal_classes_it_is_the_best_assignment() -> None:
    cost_matrix = distances(domain(1, 6)[0], domain(2, 6)[0])
    best = min(sum(cost_matrix[i, j] for i, j in enumerate(order)) / 6 for order in permutations(range(6)))
    assert emd(cost_matrix, np.ones(6), np.full(6, 7)) == pytest.approx(best, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 15), m=st.integers(1, 15), seed=st.integers(0, 10**6))
def test_it_is_the_optimum_of_the_linear_program(n: int, m: int, seed: int) -> None:
    (x, a), (y, b) = domain(seed, n), domain(seed + 1, m)
    cost_matrix = distances(x, y)
    found = transport(cost_matrix, a, b)
    assert found.distance == pytest.approx(linear_program(cost_matrix, a, b), abs=1e-9)
    assert np.vdot(found.plan, cost_matrix) == pytest.approx(found.distance, abs=1e-12)
    np.testing.assert_allclose(found.plan.sum(axis=1), a / a.sum(), atol=1e-12)
    np.testing.assert_allclose(found.plan.sum(axis=0), b / b.sum(), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_it_is_symmetric_and_zero_on_itself(n: int, m: int, seed: int) -> None:
    (x, a), (y, b) = domain(seed, n), domain(seed + 1, m)
    assert emd(distances(x, y), a, b) == pytest.approx(emd(distances(y, x), b, a), abs=1e-11)
    shuffled = np.random.default_rng(seed).permutation(n)
    assert emd(distances(x, x[shuffled]), a, a[shuffled]) == 0


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 20), m=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_a_class_alone_is_as_far_as_the_mean_distance_to_the_targets_images(n: int, m: int, seed: int) -> None:
    (x, a), (y, b) = domain(seed, n), domain(seed + 1, m)
    cost_matrix = distances(x, y)
    alone = single_class(cost_matrix, b)
    for i in range(n):
        assert alone[i] == pytest.approx(sum(cost_matrix[i, j] * b[j] for j in range(m)) / b.sum(), abs=1e-12)
    assert alone[0] == pytest.approx(linear_program(cost_matrix[:1], a[:1], b), abs=1e-9)
    assert emd(cost_matrix[:1], a[:1], b) == pytest.approx(alone[0], abs=1e-12)


def test_a_class_without_images_takes_and_gives_nothing() -> None:
    cost_matrix = distances(np.array([[0.0], [5.0], [9.0]]), np.array([[1.0], [9.0]]))
    found = transport(cost_matrix, np.array([1, 0, 1]), np.array([4, 4]))  # 0 -> 1 and 9 -> 9, half the mass each
    assert found.distance == pytest.approx(0.5, abs=1e-12)
    np.testing.assert_allclose(found.plan, [[0.5, 0], [0, 0], [0, 0.5]], atol=1e-12)


@pytest.mark.parametrize("exponent", [-900, -40, -27, 0, 27, 900])
def test_the_unit_of_the_distances_does_not_matter(exponent: int) -> None:
    """In a unit 2**27 times as large all numbers are 2**27 times smaller, to the last bit; the plan is the same."""
    (x, a), (y, b) = domain(7, 60), domain(8, 40)
    cost_matrix = distances(x, y)
    expected = transport(cost_matrix, a, b)
    found = transport(np.ldexp(cost_matrix, exponent), a, b)
    assert math.ldexp(found.distance, -exponent) == expected.distance
    assert np.array_equal(found.plan, expected.plan)
    assert np.array_equal(np.ldexp(found.prices, -exponent), expected.prices)
    assert expected.distance == pytest.approx(linear_program(cost_matrix, a, b), abs=1e-9)


def test_distances_are_those_of_every_pair() -> None:
    x, y = domain(3, 300, 40)[0], domain(4, 50, 40)[0]
    np.testing.assert_allclose(distances(x, y), cdist(x, y), rtol=1e-11)
    assert distances(x.astype(np.float32), y).dtype == np.float64


def test_near_classes_far_from_the_origin_keep_their_distance() -> None:
    """1e6 away from the origin and 1e-3 apart, next to others 1e6 apart: |x|^2 + |y|^2 - 2xy is off by 1e-4 there."""
    x = np.array([[1e6, 0.0], [-1e6, 3.0], [1e6, 1e-3]])
    found = distances(x, x)
    np.testing.assert_allclose(found, cdist(x, x), rtol=1e-9)
    assert np.all(np.diag(found) == 0)


def test_a_class_far_down_a_long_list_is_nowhere_from_itself() -> None:
    """Class 1100 of 1200, which come in parts, is the target's class 7: 0, as all others are what scipy says."""
    x, y = domain(5, 1200, 24)[0], domain(6, 9, 24)[0]
    x[1100] = y[7]
    found = distances(x.astype(np.float32), y.astype(np.float32))
    assert found[1100, 7] == 0
    np.testing.assert_allclose(found, cdist(x.astype(np.float32), y.astype(np.float32)), rtol=1e-11)


def test_similarity_is_that_of_the_published_table() -> None:
    """DSTL's demo: ImageNet and CUB-200 are 57.532 apart, a similarity of 0.563 with gamma 0.01."""
    assert similarity(57.532) == pytest.approx(0.5625, abs=1e-4)
    assert similarity(0.0) == 1.0
    assert similarity(2.0, gamma=0.5) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("cost_matrix", "source", "target", "message"),
    [
        (np.ones((2, 3)), [1, 1], [1, 1], r"shape \(2, 3\) does not match 2 source classes \(rows\) and 2 target"),
        (np.ones((0, 2)), [], [1, 1], "both need at least one class"),
        (np.full((1, 1), np.nan), [1], [1], "not finite; check the features for NaN"),
        (np.array([[1.0, -0.5]]), [1], [1, 1], "distances between classes must be 0 or more, but the smallest is -0.5"),
        (np.ones((2, 1)), [1e308, 1e308], [1], "sum of the numbers of images of the source classes is not finite"),
        (np.ones((2, 1)), [0, 0], [1], "images of the source classes must be 0 or more"),
        (np.ones((1, 2)), [1], [2, -1], "images of the target classes must be 0 or more"),
    ],
)
def test_a_transport_that_cannot_be_solved_is_refused_in_one_line(
    cost_matrix: np.ndarray, source: list[float], target: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        transport(cost_matrix, np.array(source), np.array(target))
    assert "\n" not in str(error.value)


def test_features_of_two_networks_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"cannot compare class means of shapes \(3, 4\) and \(2, 5\)"):
        distances(np.ones((3, 4)), np.ones((2, 5)))
