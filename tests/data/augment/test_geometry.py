"""Geometry: every number by hand. A 2x3 image; a point (x, y) has x in 0..3 and y in 0..2."""

import numpy as np
import pytest

from data.augment import geometry

Array = np.ndarray


def flow_of(*vectors: tuple[float, float]) -> Array:
    """A row of vectors, twice, so that the image is two pixels high."""
    return np.array([vectors, vectors], np.float32)


def test_a_mirror_image_negates_u_and_keeps_v() -> None:
    flow = flow_of((1, 10), (2, 20), (3, 30))
    mirror = geometry.translate(3, 0) @ geometry.scale(-1, 1)
    out, valid = geometry.warp_flow(flow, None, mirror, mirror, (2, 3))
    np.testing.assert_array_equal(out, flow_of((-3, 30), (-2, 20), (-1, 10)))
    assert valid.all()


def test_an_upside_down_image_negates_v_and_keeps_u() -> None:
    flow = np.array([[[1, 10], [2, 20]], [[3, 30], [4, 40]]], np.float32)
    upside_down = geometry.translate(0, 2) @ geometry.scale(1, -1)
    out, _ = geometry.warp_flow(flow, None, upside_down, upside_down, (2, 2))
    np.testing.assert_array_equal(out, np.array([[[3, -30], [4, -40]], [[1, -10], [2, -20]]], np.float32))


def test_twice_the_size_doubles_the_vectors() -> None:
    double = geometry.scale(2, 2)
    flow = flow_of((0, 0), (0.5, 0), (1, 0))  # u = (x - 0.5) / 2
    out, valid = geometry.warp_flow(flow, None, double, double, (4, 6))
    # Output centers 0.5, 1.5, ... 5.5 are source points 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, so between the outer source
    # centers, 0.5 and 2.5, u = 2 * (x - 0.5) / 2 = 0.25, 0.75, 1.25, 1.75; a half-pixel slip would give 0, 0.5, ...
    # The outermost half pixel has no second neighbor: the nearest one's 2 * 0 and 2 * 1.
    np.testing.assert_allclose(out[1, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)
    assert valid.all()


def test_a_quarter_turn_turns_the_vectors_too() -> None:
    # x to y: (x, y) -> (-y, x), back into view by adding the height, 2. The image becomes 3 high, 2 wide.
    turn = geometry.translate(2, 0) @ geometry.rotate(90)
    flow = np.array([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]], np.float32)
    out, valid = geometry.warp_flow(flow, None, turn, turn, (3, 2))
    # The upper left pixel comes from the lower left, whose (7, 8) becomes (-8, 7).
    np.testing.assert_array_equal(out, [[[-8, 7], [-2, 1]], [[-10, 9], [-4, 3]], [[-12, 11], [-6, 5]]])
    assert valid.all()
    image = np.dstack([flow[..., 0]] * 3).astype(np.uint8)
    np.testing.assert_array_equal(geometry.warp_image(image, turn, (3, 2))[..., 0], [[7, 1], [9, 3], [11, 5]])


def test_moving_frame_2_adds_to_the_flow_and_moving_both_does_not() -> None:
    flow = flow_of((1, 2), (1, 2), (1, 2))
    first, second = geometry.translate(1, 0), geometry.translate(1.5, -0.25)
    out, valid = geometry.warp_flow(flow, None, first, second, (2, 3))
    np.testing.assert_allclose(out[:, 1:], np.full((2, 2, 2), [1.5, 1.75]))
    np.testing.assert_array_equal(valid, [[False, True, True]] * 2)  # column 0 is revealed
    np.testing.assert_array_equal(out[:, 0], 0)


def test_frame_2_grown_about_the_origin_adds_a_tenth_of_where_points_end() -> None:
    # Still points, frame 2 scaled by 1.1: a point at x goes to 1.1 x, so u = 0.1 x = 0.05, 0.15, 0.25.
    out, _ = geometry.warp_flow(np.zeros((2, 3, 2), np.float32), None, np.eye(3), geometry.scale(1.1, 1), (2, 3))
    np.testing.assert_allclose(out[0], [[0.05, 0], [0.15, 0], [0.25, 0]], atol=1e-7)


def test_two_motions_are_not_averaged() -> None:
    # An edge between u = 0 and u = 10, sampled at x = 1.25 and 1.75 between the pixel centers 0.5 | 1.5 | 2.5.
    flow = flow_of((0, 0), (0, 0), (10, 0), (10, 0))
    double = geometry.scale(2, 2)
    out, _ = geometry.warp_flow(flow, None, double, double, (4, 8))
    np.testing.assert_array_equal(out[2, :, 0], [0, 0, 0, 0, 20, 20, 20, 20])  # 5 and 15 beside the edge if averaged


def test_unknown_flow_stays_unknown_and_leaks_into_no_neighbor() -> None:
    flow, valid = flow_of((0.2, 0), (0.4, 0), (0.9, 0)), np.array([[True, True, False]] * 2)
    double = geometry.scale(2, 2)
    out, known = geometry.warp_flow(flow, valid, double, double, (4, 6))
    np.testing.assert_array_equal(known, [[True, True, True, True, False, False]] * 4)
    # x = 1.75 lies between a known 0.4 and an unknown 0.9: the known one, not 0.525.
    np.testing.assert_allclose(out[1, :, 0], [0.4, 0.5, 0.7, 0.8, 0, 0], atol=1e-6)


def test_an_image_one_pixel_high_moves_like_any_other() -> None:
    right = geometry.translate(1, 0)
    out, valid = geometry.warp_flow(np.ones((1, 5, 2), np.float32), None, right, right, (1, 5))
    np.testing.assert_array_equal(out[0, :, 0], [0, 1, 1, 1, 1])
    assert valid.sum() == 4


@pytest.mark.parametrize("factor", [1.0, 0.6, 0.5, 0.34, 0.3, 0.12])
def test_a_spot_lands_where_its_map_takes_it_at_any_scale(factor: float) -> None:
    # Sides that no block divides: 101 x 143. The spot is wide enough to be seen at every scale.
    x, y = np.meshgrid(np.arange(143) + 0.5, np.arange(101) + 0.5)
    spot = 250 * np.exp(-((x - 90) ** 2 + (y - 40) ** 2) / (2 * 12**2))
    moved = geometry.warp_image(np.dstack([spot.astype(np.uint8)] * 3), geometry.scale(factor, factor), (101, 143))
    weights = moved[..., 0].astype(float)
    center = (weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum()
    assert center == pytest.approx((90 * factor, 40 * factor), abs=0.05)


@pytest.mark.parametrize("shift", [(500, 0), (-500, 0), (0, 500), (0, -500)])
def test_a_view_beside_the_image_shows_the_border_alone(shift: tuple[float, float]) -> None:
    out = geometry.warp_image(np.full((20, 30, 3), 200, np.uint8), geometry.translate(*shift), (8, 9), (1, 2, 3))
    assert (out == (1, 2, 3)).all()
