"""Augmentation: numbers worked out by hand, then the proof by warping on synthetic and real pairs."""

import os
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.augment import geometry
from data.augment.augment import PRESETS, AugmentConfig, RelativeConfig
from data.augment.color import ColorConfig
from mtsp.config import ConfigError, parse
from mtsp.types import IGNORE, Sample

Array = np.ndarray
Arrays = dict[str, Any]
"""A `Sample` whose keys the test knows to be there."""


def augmented(config: AugmentConfig, sample: Arrays, seed: int = 0) -> Arrays:
    return cast(Arrays, config.build()(cast(Sample, sample), np.random.default_rng(seed)))


def image_of(frame: Array, **labels: Array) -> Arrays:
    return {"name": "a", "frame": frame, **labels}


# What is done to a sample. Geometry alone: test_geometry.py; colors: test_color.py.


def test_the_identity_changes_nothing_to_the_bit() -> None:
    sample = pair(np.array([[0.01, 0.02], [-0.03, 0.01]]), np.array([2.3, -1.2]))
    out = augmented(AugmentConfig(), sample)
    for key in ("frame", "next_frame", "mask", "flow"):
        np.testing.assert_array_equal(out[key], sample[key])
    assert out["flow_valid"].all()


def test_flips_move_frame_mask_and_flow_to_the_same_places() -> None:
    sample = pair(np.zeros((2, 2)), np.array([3.0, -2.0]))
    out = augmented(AugmentConfig(flip=1.0, vertical_flip=1.0), sample)
    for key in ("frame", "next_frame", "mask"):
        np.testing.assert_array_equal(out[key], sample[key][::-1, ::-1])
    np.testing.assert_array_equal(out["flow"], -sample["flow"][::-1, ::-1])


def test_what_is_revealed_is_ignored_and_filled_with_what_the_config_says() -> None:
    sample = image_of(np.full((4, 4, 3), 200, np.uint8), mask=np.ones((4, 4), np.uint8))
    out = augmented(AugmentConfig(crop=(4, 6), frame_border=(1, 2, 3)), sample)
    row = [IGNORE, 1, 1, 1, 1, IGNORE]  # two more columns, one on either side
    np.testing.assert_array_equal(out["mask"], [row] * 4)
    assert out["frame"][0, 0].tolist() == [1, 2, 3]
    assert out["frame"][0, 1].tolist() == [200, 200, 200]
    background = augmented(AugmentConfig(crop=(4, 6), mask_border=0), sample)
    assert background["mask"][0].tolist() == [0, 1, 1, 1, 1, 0]


def test_enlarging_darkens_no_edge_where_nothing_is_revealed() -> None:
    sample = image_of(np.full((5, 5, 3), 200, np.uint8))
    out = augmented(AugmentConfig(resize=(10, 10)), sample)
    assert (out["frame"] == 200).all()


def test_shrinking_averages_instead_of_picking_every_fourth_pixel() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    sample = image_of(np.dstack([checkers] * 3))
    out = augmented(AugmentConfig(resize=(16, 16)), sample)
    assert out["frame"].min() >= 127  # picked pixels would be 0 and 255 or all alike
    assert out["frame"].max() <= 128


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


def warping_error(sample: Arrays, margin: float = 1.5) -> tuple[Array, Array]:
    """Mean absolute difference of frame and warped next frame, HW gray levels, and where it can be told.

    Independent of the code under test: gathered by `cv2.remap` at pixel + flow.
    """
    flow = sample["flow"]
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    warped = cv2.remap(sample["next_frame"].astype(np.float32), x, y, cv2.INTER_LINEAR)
    seen = sample.get("flow_valid", np.ones((height, width), bool)).copy()
    seen &= (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)
    return np.abs(warped - sample["frame"]).mean(axis=2), seen


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
    sample = pair(0.06 * np.reshape(change, (2, 2)), 6 * np.array(shift))
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
    out = augmented(config, sample, seed=seed)
    assert out["flow"].shape == (64, 80, 2)
    assert out["flow"].dtype == np.float32

    error, seen = warping_error(out)
    columns, rows = np.meshgrid(np.arange(80, dtype=np.float32), np.arange(64, dtype=np.float32))
    inside = shown(out["next_frame"]).astype(np.float32)
    partner = cv2.remap(inside, columns + out["flow"][..., 0], rows + out["flow"][..., 1], cv2.INTER_LINEAR)
    seen &= (partner > 0.999) & shown(out["frame"])
    before, whole = warping_error(sample)
    assert before[whole].mean() < 1.5  # rounding to bytes and interpolation
    assert seen.sum() > 50
    assert error[seen].mean() < 1.5 * before[whole].mean() + 0.75  # 1 px of wrong flow costs about 10 gray levels here
    assert np.quantile(error[seen], 0.99) < 6


def test_a_flow_wrong_by_a_quarter_pixel_fails_that_proof() -> None:
    sample = pair(np.zeros((2, 2)), np.array([2.0, 1.0]))
    before, whole = warping_error(sample)
    sample["flow"] = sample["flow"] + np.float32(0.25)
    after, _ = warping_error(sample)
    assert after[whole].mean() > 1.5 * before[whole].mean() + 0.75


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), preset=st.sampled_from(["flownet", "flownet2", "segflow"]))
def test_presets_give_the_analytic_flow(seed: int, preset: str) -> None:
    change, shift, size = np.array([[0.02, -0.03], [0.01, 0.04]]), np.array([4.0, -3.0]), (96, 128)
    sample = pair(change, shift, size)
    values = {"preset": preset, "crop": [64, 80], "resize": None}
    augmentation = parse(AugmentConfig, values).build()
    out = augmented(augmentation.config, sample, seed)
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
        sample = image_of(frames[0], next_frame=frames[1], flow=flow)
        error, seen = warping_error(sample)
        for draw in range(3):
            seed = 10 * index + draw
            out = augmented(augmentation.config, sample, seed)
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
    sample = pair(np.zeros((2, 2)), np.ones(2))
    fewer = {key: sample[key] for key in ("name", "frame", *keys)}
    out = augmented(AugmentConfig(preset="flownet2", crop=(32, 40)), fewer, seed=3)
    assert set(out) == {"name", "frame", *keys} | ({"flow_valid"} if "flow" in keys else set())
    whole = augmented(AugmentConfig(preset="flownet2", crop=(32, 40)), sample, seed=3)
    np.testing.assert_array_equal(out["frame"], whole["frame"])  # the draw does not depend on the labels


def test_the_same_generator_state_gives_the_same_result_and_the_next_another() -> None:
    sample = cast(Sample, pair(np.zeros((2, 2)), np.ones(2)))
    augmentation = AugmentConfig(preset="flownet", crop=(32, 40)).build()
    rng = np.random.default_rng(7)
    first, second = (cast(Arrays, augmentation(sample, rng)) for _ in range(2))
    again = cast(Arrays, augmentation(sample, np.random.default_rng(7)))
    for key in ("frame", "next_frame", "mask", "flow", "flow_valid"):
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["flow"], second["flow"])


def test_the_input_is_left_as_it_was() -> None:
    sample = pair(np.zeros((2, 2)), np.ones(2))
    copies = {key: sample[key].copy() for key in ("frame", "next_frame", "mask", "flow")}
    augmented(AugmentConfig(preset="flownet2", crop=(32, 40)), sample)
    for key, copy in copies.items():
        np.testing.assert_array_equal(sample[key], copy)


def test_crops_that_keep_inside_reveal_nothing() -> None:
    white = np.full((96, 128, 3), 255, np.uint8)
    sample = image_of(white, next_frame=white, mask=np.zeros((96, 128), np.uint8))
    relative = RelativeConfig(translate=(0.03, 0.03), rotate=2.0)
    config = AugmentConfig(preset="flownet2", crop=(80, 112), color=ColorConfig(), relative=relative, mask_border=9)
    for seed in range(30):
        out = augmented(config, sample, seed)
        assert out["mask"].max() == 0
        assert min(out["frame"].min(), out["next_frame"].min()) == 255


def test_a_crop_that_never_fits_is_the_unmoved_middle() -> None:
    sample = image_of(np.zeros((4, 4, 3), np.uint8), mask=np.arange(16, dtype=np.uint8).reshape(4, 4))
    config = AugmentConfig(crop=(2, 2), scale=(0.1, 0.2), keep_inside=True)
    out = augmented(config, sample)
    np.testing.assert_array_equal(out["mask"], [[5, 6], [9, 10]])


def test_a_random_crop_reaches_both_ends_and_nothing_beyond() -> None:
    mask = np.tile(np.arange(20, dtype=np.uint8), (10, 1))
    sample = image_of(np.zeros((10, 20, 3), np.uint8), mask=mask)
    config = AugmentConfig(crop=(10, 10), position="random")
    starts = [augmented(config, sample, seed)["mask"][0, 0] for seed in range(200)]
    assert min(starts) == 0
    assert max(starts) == 10


def test_arrays_of_two_sizes_are_refused_by_name() -> None:
    sample = dict(name="surf/00054", frame=np.zeros((4, 6, 3), np.uint8), mask=np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"surf/00054: mask is 4x5, but the frame is 4x6"):
        augmented(AugmentConfig(), sample)


# Color.


def test_frame_2_has_both_changes_of_color() -> None:
    # 100 * 1.5 = 150 in both frames; in the second 0.5 of that.
    relative = RelativeConfig(color=ColorConfig(brightness=(0.5, 0.5)))
    gray = np.full((2, 2, 3), 100, np.uint8)
    config = AugmentConfig(color=ColorConfig(brightness=(1.5, 1.5)), relative=relative)
    out = augmented(config, image_of(gray, next_frame=gray))
    assert (out["frame"][0, 0, 0], out["next_frame"][0, 0, 0]) == (150, 75)


def test_noise_has_its_deviation_and_differs_between_frames() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    sample = image_of(gray, next_frame=gray)
    out = augmented(AugmentConfig(color=ColorConfig(noise=(0.04, 0.04))), sample)
    assert out["frame"].std() == pytest.approx(0.04 * 255, rel=0.02)  # 120000 draws: known to 0.2 %
    assert not np.array_equal(out["frame"], out["next_frame"])


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
    with pytest.raises(
        ConfigError, match="`resize` and `short_side` both set the size of the image; set only one of them"
    ):
        parse(AugmentConfig, {"resize": [4, 4], "short_side": 4})
    config = parse(AugmentConfig, {"preset": "encnet", "resize": [240, 320]})
    assert (config.resize, config.short_side, config.crop) == ((240, 320), None, (480, 480))
    config = parse(AugmentConfig, {"preset": "segflow", "short_side": 240})
    assert (config.resize, config.short_side) == (None, 240)
