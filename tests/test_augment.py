"""Augmentation: numbers worked out by hand, then the proof by warping on synthetic and real pairs."""

import math
import os
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import geometry
from data.augment import PRESETS, AugmentConfig, RelativeConfig
from data.color import Color, ColorConfig
from mtsp.config import ConfigError, parse
from mtsp.types import IGNORE, Raw

Array = np.ndarray
Arrays = dict[str, Any]
"""A `Raw` whose keys the test knows to be there."""


def augmented(config: AugmentConfig, raw: Arrays, seed: int = 0) -> Arrays:
    return cast(Arrays, config.build()(cast(Raw, raw), np.random.default_rng(seed)))


def image_of(frame: Array, **labels: Array) -> Arrays:
    return {"name": "a", "frame": frame, **labels}


def flow_of(*vectors: tuple[float, float]) -> Array:
    """A row of vectors, twice, so that the image is two pixels high."""
    return np.array([vectors, vectors], np.float32)


# Geometry: every number by hand. A 2x3 image; a point (x, y) has x in 0..3 and y in 0..2.


def test_the_identity_changes_nothing_to_the_bit() -> None:
    raw = pair(np.array([[0.01, 0.02], [-0.03, 0.01]]), np.array([2.3, -1.2]))
    out = augmented(AugmentConfig(), raw)
    for key in ("frame", "next_frame", "mask", "flow"):
        np.testing.assert_array_equal(out[key], raw[key])
    assert out["flow_valid"].all()


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


def test_flips_move_frame_mask_and_flow_to_the_same_places() -> None:
    raw = pair(np.zeros((2, 2)), np.array([3.0, -2.0]))
    out = augmented(AugmentConfig(flip=1.0, vertical_flip=1.0), raw)
    for key in ("frame", "next_frame", "mask"):
        np.testing.assert_array_equal(out[key], raw[key][::-1, ::-1])
    np.testing.assert_array_equal(out["flow"], -raw["flow"][::-1, ::-1])


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


def test_what_is_revealed_is_ignored_and_filled_with_what_the_config_says() -> None:
    raw = image_of(np.full((4, 4, 3), 200, np.uint8), mask=np.ones((4, 4), np.uint8))
    out = augmented(AugmentConfig(crop=(4, 6), frame_border=(1, 2, 3)), raw)
    row = [IGNORE, 1, 1, 1, 1, IGNORE]  # two more columns, one on either side
    np.testing.assert_array_equal(out["mask"], [row] * 4)
    assert out["frame"][0, 0].tolist() == [1, 2, 3]
    assert out["frame"][0, 1].tolist() == [200, 200, 200]
    background = augmented(AugmentConfig(crop=(4, 6), mask_border=0), raw)
    assert background["mask"][0].tolist() == [0, 1, 1, 1, 1, 0]


def test_enlarging_darkens_no_edge_where_nothing_is_revealed() -> None:
    raw = image_of(np.full((5, 5, 3), 200, np.uint8))
    out = augmented(AugmentConfig(resize=(10, 10)), raw)
    assert (out["frame"] == 200).all()


def test_shrinking_averages_instead_of_picking_every_fourth_pixel() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    raw = image_of(np.dstack([checkers] * 3))
    out = augmented(AugmentConfig(resize=(16, 16)), raw)
    assert out["frame"].min() >= 127  # picked pixels would be 0 and 255 or all alike
    assert out["frame"].max() <= 128


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


# The proof by warping.


def texture(x: Array, y: Array) -> Array:
    """Three smooth channels of waves at least 24 pixels long, values 40 to 215."""
    waves = [(0.21, 0.07, 0.3), (-0.05, 0.23, 1.1), (0.13, -0.19, 2.0)]
    base = [np.sin(a * x + b * y + c) for a, b, c in waves]
    mixed = [base[0] + 0.5 * base[1], base[1] + 0.5 * base[2], base[2] + 0.5 * base[0]]
    return np.stack([127.5 + 87.5 / 1.5 * m for m in mixed], axis=-1)


def pair(change: Array, shift: Array, size: tuple[int, int] = (96, 128)) -> Arrays:
    """Two frames of the texture with exact flow f(p) = change (p - center) + shift."""
    height, width = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    center = np.array([width / 2, height / 2])
    points = np.stack([x, y], axis=-1)
    flow = (points - center) @ change.T + shift
    # Frame 2 at q shows what was at p, q = p + f(p): (1 + change) (p - center) = q - center - shift.
    before = (points - center - shift) @ np.linalg.inv(np.eye(2) + change).T + center
    frame, next_frame = texture(x, y), texture(before[..., 0], before[..., 1])
    mask = (np.hypot(x - 50, y - 40) < 25).astype(np.uint8)
    return image_of(
        np.rint(frame).astype(np.uint8),
        next_frame=np.rint(next_frame).astype(np.uint8),
        mask=mask,
        flow=flow.astype(np.float32),
    )


def warping_error(raw: Arrays, margin: float = 1.5) -> tuple[Array, Array]:
    """Mean absolute difference of frame and warped next frame, HW gray levels, and where it can be told.

    Independent of the code under test: gathered by `cv2.remap` at pixel + flow.
    """
    flow = raw["flow"]
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    warped = cv2.remap(raw["next_frame"].astype(np.float32), x, y, cv2.INTER_LINEAR)
    seen = raw.get("flow_valid", np.ones((height, width), bool)).copy()
    seen &= (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)
    return np.abs(warped - raw["frame"]).mean(axis=2), seen


def shown(image: Array) -> Array:
    """Where an augmented image shows its source, two pixels or more from its border, which is (0, 0, 0)."""
    return cv2.erode((image.max(axis=2) > 0).astype(np.uint8), np.ones((5, 5), np.uint8)).view(bool)


spread = st.floats(-1, 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    change=st.tuples(spread, spread, spread, spread),
    shift=st.tuples(spread, spread),
    scale=st.floats(0.7, 1.8),
    squeeze=st.floats(0, 0.25),
    rotate=st.floats(0, 180),
    flips=st.tuples(st.booleans(), st.booleans()),
    relative=st.booleans(),
    position=st.sampled_from(["center", "random"]),
    resize=st.sampled_from([None, (80, 120)]),
)
def test_the_second_frame_warped_by_the_flow_is_the_first_after_any_draw(
    seed: int,
    change: tuple[float, ...],
    shift: tuple[float, ...],
    scale: float,
    squeeze: float,
    rotate: float,
    flips: tuple[bool, bool],
    relative: bool,
    position: str,
    resize: tuple[int, int] | None,
) -> None:
    raw = pair(0.06 * np.reshape(change, (2, 2)), 6 * np.array(shift))
    own = RelativeConfig(translate=(0.03, 0.03), rotate=3.0, scale=(0.95, 1.05)) if relative else None
    config = AugmentConfig(
        crop=(64, 80),
        resize=resize,
        scale=(min(scale, 1), max(scale, 1)),
        squeeze=squeeze,
        rotate=rotate,
        translate=(0.1, 0.1),
        flip=float(flips[0]),
        vertical_flip=float(flips[1]),
        relative=own,
        position="random" if position == "random" else "center",
        frame_border=(0, 0, 0),
    )
    out = augmented(config, raw, seed=seed)
    assert out["flow"].shape == (64, 80, 2)
    assert out["flow"].dtype == np.float32

    error, seen = warping_error(out)
    columns, rows = np.meshgrid(np.arange(80, dtype=np.float32), np.arange(64, dtype=np.float32))
    inside = shown(out["next_frame"]).astype(np.float32)
    partner = cv2.remap(inside, columns + out["flow"][..., 0], rows + out["flow"][..., 1], cv2.INTER_LINEAR)
    seen &= (partner > 0.999) & shown(out["frame"])
    before, whole = warping_error(raw)
    assert before[whole].mean() < 1.5  # rounding to bytes and interpolation
    assert seen.sum() > 50
    assert error[seen].mean() < 1.5 * before[whole].mean() + 0.75  # 1 px of wrong flow costs about 10 gray levels here
    assert np.quantile(error[seen], 0.99) < 6


def test_a_flow_wrong_by_a_quarter_pixel_fails_that_proof() -> None:
    raw = pair(np.zeros((2, 2)), np.array([2.0, 1.0]))
    before, whole = warping_error(raw)
    raw["flow"] = raw["flow"] + np.float32(0.25)
    after, _ = warping_error(raw)
    assert after[whole].mean() > 1.5 * before[whole].mean() + 0.75


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), preset=st.sampled_from(["flownet", "flownet2", "segflow"]))
def test_presets_give_the_analytic_flow(seed: int, preset: str) -> None:
    change, shift, size = np.array([[0.02, -0.03], [0.01, 0.04]]), np.array([4.0, -3.0]), (96, 128)
    raw = pair(change, shift, size)
    values = {"preset": preset, "crop": [64, 80], "resize": None}
    augmentation = parse(AugmentConfig, values).build()
    out = augmented(augmentation.config, raw, seed)
    _, first, second = augmentation.maps(size, np.random.default_rng(seed))

    x, y = np.meshgrid(np.arange(80) + 0.5, np.arange(64) + 0.5)
    q = np.stack([x, y], axis=-1)
    p = (q - first[:2, 2]) @ np.linalg.inv(first[:2, :2]).T
    partner = p + (p - [64, 48]) @ change.T + shift
    expected = partner @ second[:2, :2].T + second[:2, 2] - q
    inner = ((p >= 0.5) & (p <= [127.5, 95.5])).all(axis=-1)  # between the outermost pixel centers
    assert out["flow_valid"][inner].all()
    # 1/64 px where OpenCV samples in steps of 1/32 px, times at most 0.05 px per px and a zoom of 2.5.
    np.testing.assert_allclose(out["flow"][inner], expected[inner], atol=2e-3)


def real_chairs() -> list[Path]:
    folder = Path(os.environ.get("MTSP_DATA", "/nowhere")) / "FlyingChairs_release" / "data"
    return sorted(folder.glob("*_flow.flo"))


@pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA does not name the folder of real data")
@pytest.mark.parametrize("preset", ["flownet", "flownet2", "segflow"])
def test_real_pairs_match_after_augmentation_as_well_as_before(preset: str) -> None:
    paths = real_chairs()
    assert paths
    plain = ColorConfig()
    values = {"preset": preset, "crop": (320, 448), "resize": None, "color": plain, "frame_border": (0, 0, 0)}
    if preset != "segflow":
        relative = PRESETS[preset]["relative"].model_copy(update={"color": plain})
        values["relative"] = relative
    augmentation = AugmentConfig(**values).build()
    before, after, unmoved = [], [], []
    for index, path in enumerate(paths):
        stem = path.name.removesuffix("_flow.flo")
        frames = [np.array(Image.open(path.with_name(f"{stem}_img{k}.ppm"))) for k in (1, 2)]
        flow = np.fromfile(path, "<f4", offset=12).reshape(*frames[0].shape[:2], 2)
        raw = image_of(frames[0], next_frame=frames[1], flow=flow)
        error, seen = warping_error(raw)
        for draw in range(3):
            seed = 10 * index + draw
            out = augmented(augmentation.config, raw, seed)
            moved, visible = warping_error(out)
            visible &= shown(out["frame"])
            # The same scene points as before: the error that the original pair has where the output looks.
            _, first, _ = augmentation.maps(flow.shape[:2], np.random.default_rng(seed))
            where = np.dstack([error * seen, seen, seen]).astype(np.float32)
            where = cv2.warpAffine(where, geometry.pixel_matrix(first), (448, 320))
            visible &= where[..., 1] > 0.999
            before.append(np.median(where[..., 0][visible]))
            after.append(np.median(moved[visible]))
            unmoved.append(np.median(warping_error({**out, "flow": 0 * out["flow"]})[0][visible]))
    assert np.mean(after) < 1.1 * np.mean(before) + 0.5
    assert np.mean(after) < 0.5 * np.mean(unmoved)


# Samples with less, and what stays the same.


@pytest.mark.parametrize("keys", [(), ("mask",), ("next_frame",), ("next_frame", "mask"), ("next_frame", "flow")])
def test_what_a_sample_lacks_stays_away(keys: tuple[str, ...]) -> None:
    raw = pair(np.zeros((2, 2)), np.ones(2))
    fewer = {key: raw[key] for key in ("name", "frame", *keys)}
    out = augmented(AugmentConfig(preset="flownet2", crop=(32, 40)), fewer, seed=3)
    assert set(out) == {"name", "frame", *keys} | ({"flow_valid"} if "flow" in keys else set())
    whole = augmented(AugmentConfig(preset="flownet2", crop=(32, 40)), raw, seed=3)
    np.testing.assert_array_equal(out["frame"], whole["frame"])  # the draw does not depend on the labels


def test_the_same_generator_state_gives_the_same_result_and_the_next_another() -> None:
    raw = cast(Raw, pair(np.zeros((2, 2)), np.ones(2)))
    augmentation = AugmentConfig(preset="flownet", crop=(32, 40)).build()
    rng = np.random.default_rng(7)
    first, second = (cast(Arrays, augmentation(raw, rng)) for _ in range(2))
    again = cast(Arrays, augmentation(raw, np.random.default_rng(7)))
    for key in ("frame", "next_frame", "mask", "flow", "flow_valid"):
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["flow"], second["flow"])


def test_the_input_is_left_as_it_was() -> None:
    raw = pair(np.zeros((2, 2)), np.ones(2))
    copies = {key: raw[key].copy() for key in ("frame", "next_frame", "mask", "flow")}
    augmented(AugmentConfig(preset="flownet2", crop=(32, 40)), raw)
    for key, copy in copies.items():
        np.testing.assert_array_equal(raw[key], copy)


def test_crops_that_keep_inside_reveal_nothing() -> None:
    white = np.full((96, 128, 3), 255, np.uint8)
    raw = image_of(white, next_frame=white, mask=np.zeros((96, 128), np.uint8))
    relative = RelativeConfig(translate=(0.03, 0.03), rotate=2.0)
    config = AugmentConfig(preset="flownet2", crop=(80, 112), color=ColorConfig(), relative=relative, mask_border=9)
    for seed in range(30):
        out = augmented(config, raw, seed)
        assert out["mask"].max() == 0
        assert min(out["frame"].min(), out["next_frame"].min()) == 255


def test_a_crop_that_never_fits_is_the_unmoved_middle() -> None:
    raw = image_of(np.zeros((4, 4, 3), np.uint8), mask=np.arange(16, dtype=np.uint8).reshape(4, 4))
    config = AugmentConfig(crop=(2, 2), scale=(0.1, 0.2), keep_inside=True)
    out = augmented(config, raw)
    np.testing.assert_array_equal(out["mask"], [[5, 6], [9, 10]])


def test_a_random_crop_reaches_both_ends_and_nothing_beyond() -> None:
    mask = np.tile(np.arange(20, dtype=np.uint8), (10, 1))
    raw = image_of(np.zeros((10, 20, 3), np.uint8), mask=mask)
    config = AugmentConfig(crop=(10, 10), position="random")
    starts = [augmented(config, raw, seed)["mask"][0, 0] for seed in range(200)]
    assert min(starts) == 0
    assert max(starts) == 10


def test_arrays_of_two_sizes_are_refused_by_name() -> None:
    raw = dict(name="surf/00054", frame=np.zeros((4, 6, 3), np.uint8), mask=np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"surf/00054: mask is 4x5, its frame 4x6"):
        augmented(AugmentConfig(), raw)


# Color.


def test_color_is_the_formula_rounded_once() -> None:
    # Contrast 1.5 about 0.5 after brightness 0.8: 1.5 * 0.8 x - 0.25, of 100 -> 120 - 63.75 = 56.25; 240 -> 224.25.
    color = ColorConfig(brightness=(0.8, 0.8), contrast=(1.5, 1.5)).sample(np.random.default_rng(0))
    image = np.array([[[100, 240, 10]]], np.uint8)
    assert color.apply(image, np.random.default_rng(0)).tolist() == [[[56, 224, 0]]]  # 10 -> -51.75, clamped


def test_saturation_zero_is_gray_by_luma() -> None:
    color = ColorConfig(saturation=(0.0, 0.0)).sample(np.random.default_rng(0))
    # 0.299 * 100 + 0.587 * 200 + 0.114 * 50 = 29.9 + 117.4 + 5.7
    assert color.apply(np.array([[[100, 200, 50]]], np.uint8), np.random.default_rng(0)).tolist() == [[[153] * 3]]


def test_a_third_of_a_turn_of_hue_takes_red_to_green_and_leaves_gray() -> None:
    from data.color import _hue

    np.testing.assert_allclose(_hue(120) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(_hue(37) @ [1, 1, 1], [1, 1, 1], atol=1e-12)


def test_gamma_comes_after_the_matrix() -> None:
    half = Color(0.5 * np.eye(3, 4), gamma=2.0)
    # 200 / 2 = 100, then 255 * (100 / 255)^2 = 39.2; before, it would be 255 * (200 / 255)^2 / 2 = 78.4
    assert half.apply(np.full((1, 1, 3), 200, np.uint8), np.random.default_rng(0)).tolist() == [[[39, 39, 39]]]


def test_frame_2_has_both_changes_of_color() -> None:
    # 100 * 1.5 = 150 in both frames; in the second 0.5 of that.
    relative = RelativeConfig(color=ColorConfig(brightness=(0.5, 0.5)))
    gray = np.full((2, 2, 3), 100, np.uint8)
    config = AugmentConfig(color=ColorConfig(brightness=(1.5, 1.5)), relative=relative)
    out = augmented(config, image_of(gray, next_frame=gray))
    assert (out["frame"][0, 0, 0], out["next_frame"][0, 0, 0]) == (150, 75)


def test_noise_has_its_deviation_and_differs_between_frames() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    raw = image_of(gray, next_frame=gray)
    out = augmented(AugmentConfig(color=ColorConfig(noise=(0.04, 0.04))), raw)
    assert out["frame"].std() == pytest.approx(0.04 * 255, rel=0.02)  # 120000 draws: known to 0.2 %
    assert not np.array_equal(out["frame"], out["next_frame"])


def test_one_change_after_another_is_their_product() -> None:
    first = ColorConfig(brightness=(1.2, 1.2), hue=30.0).sample(np.random.default_rng(0))
    second = ColorConfig(contrast=(0.7, 0.7), shift=0.05).sample(np.random.default_rng(1))
    x = np.array([0.2, 0.5, 0.4])
    stepwise = second.matrix @ np.append(first.matrix @ np.append(x, 1), 1)
    np.testing.assert_allclose(second.after(first).matrix @ np.append(x, 1), stepwise)


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    # log of (0.5, 2): even between -0.693 and 0.693 has deviation 0.693 / sqrt(3); as one deviation either side 0.693.
    [("log-uniform", 0.0, math.log(2) / math.sqrt(3)), ("log-normal", 0.0, math.log(2))],
)
def test_factors_are_drawn_as_said(draw: str, mean: float, deviation: float) -> None:
    config = parse(ColorConfig, {"brightness": [0.5, 2.0], "draw": draw})
    rng = np.random.default_rng(0)
    logs = [math.log(config.sample(rng).matrix[0, 0]) for _ in range(2000)]
    assert np.mean(logs) == pytest.approx(mean, abs=4 * deviation / math.sqrt(2000))
    assert np.std(logs) == pytest.approx(deviation, rel=0.06)


# Configuration.


def test_a_preset_sets_defaults_that_a_key_replaces() -> None:
    config = parse(AugmentConfig, {"preset": "segflow", "resize": [216, 384], "flip": 0.0})
    assert config.resize == (216, 384)
    assert config.flip == 0.0
    assert (config.scale, config.rotate, config.translate) == ((0.95, 1.05), 5.0, (0.05, 0.05))
    assert (config.frame_border, config.mask_border) == ((0, 0, 0), 0)


def test_a_printed_preset_reads_back_as_itself() -> None:
    for preset in PRESETS:
        config = parse(AugmentConfig, {"preset": preset})
        assert parse(AugmentConfig, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": [2.0, 0.5]}, "scale: the lower end comes first"),
        ({"scale": [0.0, 1.0]}, "scale.0: Input should be greater than 0"),
        ({"flip": 1.5}, "flip: Input should be less than or equal to 1"),
        ({"preset": "flownet3"}, "did you mean flownet"),
        ({"color": {"brightnes": [1.0, 1.0]}}, "did you mean color.brightness?"),
        ({"crop": [0, 4]}, "crop.0: Input should be greater than 0"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(AugmentConfig, values)
    assert message in str(error.value)


# EncNet's: the short side is scaled, what is lacking lies right and below, flips, blur.


def test_the_short_side_is_scaled_and_the_shape_kept() -> None:
    config = AugmentConfig(short_side=30)
    for size, expected in (((20, 40), (30, 60)), ((40, 20), (60, 30)), ((20, 21), (30, 32))):  # 31.5 to the even 32
        out = augmented(config, image_of(np.zeros((*size, 3), np.uint8), mask=np.zeros(size, np.uint8)))
        assert out["frame"].shape == (*expected, 3)
        assert out["mask"].shape == expected


def test_a_crop_larger_than_the_image_is_black_and_unknown_right_and_below() -> None:
    config = AugmentConfig(preset="encnet", short_side=10, scale=(1, 1), crop=(16, 24), flip=0, blur=0)
    for seed in range(3):
        frame, mask = np.full((10, 20, 3), 200, np.uint8), np.full((10, 20), 3, np.uint8)
        out = augmented(config, image_of(frame, mask=mask), seed)
        expected = np.full((16, 24), IGNORE)
        expected[:10, :20] = 3
        np.testing.assert_array_equal(out["mask"], expected)
        assert (out["frame"][:9, :19] == 200).all()  # the outermost pixel blends with the border
        assert (out["frame"][10:] == 0).all()
        assert (out["frame"][:, 20:] == 0).all()


def test_a_larger_image_is_cropped_anywhere_along_it_also_with_a_border_after() -> None:
    config = AugmentConfig(preset="encnet", short_side=10, scale=(1, 1), crop=(10, 10), flip=0, blur=0)
    frame = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(10, axis=0)
    mask = np.arange(20, dtype=np.uint8)[None].repeat(10, axis=0)
    lefts = {int(augmented(config, image_of(frame, mask=mask), seed)["mask"][0, 0]) for seed in range(200)}
    assert lefts == set(range(11))  # the first column of a crop of 10 in 20


def test_blur_softens_half_of_the_frames_and_no_mask() -> None:
    config = AugmentConfig(blur=1.0)
    frame = np.zeros((9, 9, 3), np.uint8)
    frame[4, 4] = 255
    mask = (frame[..., 0] > 0).astype(np.uint8)
    peaks = []
    for seed in range(200):
        out = augmented(config, image_of(frame, mask=mask), seed)
        np.testing.assert_array_equal(out["mask"], mask)
        peaks.append(int(out["frame"][4, 4, 0]))
    softened = [peak for peak in peaks if peak < 255]
    # Half of all; of those a third have a deviation below a third of a pixel, too little to see in a byte or nearly so.
    assert 0.3 < len(softened) / 200 < 0.55
    assert min(softened) < 60  # at a deviation of 1 the peak is 255 / (2 pi) = 41


def test_the_size_is_said_once_and_replaces_the_presets() -> None:
    with pytest.raises(ConfigError, match="resize and short_side both say how large an image is; give one of them"):
        parse(AugmentConfig, {"resize": [4, 4], "short_side": 4})
    config = parse(AugmentConfig, {"preset": "encnet", "resize": [240, 320]})
    assert (config.resize, config.short_side, config.crop) == ((240, 320), None, (480, 480))
    config = parse(AugmentConfig, {"preset": "segflow", "short_side": 240})
    assert (config.resize, config.short_side) == (None, 240)
