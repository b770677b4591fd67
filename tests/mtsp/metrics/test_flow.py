"""Flow errors against a loop over pixels, on made-up and on real flow, and the rules about what counts."""

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files.flow_formats.flo import read_flo
from data.files.flow_formats.kitti import read_kitti_flow
from mtsp.metrics import FlowErrors, flow_sums
from mtsp.metrics.kernels import flow_forms, flow_loops, jit

KEYS = ("epe", "epe_0_10", "epe_10_40", "epe_40_plus", "out_1px", "out_3px", "out_5px", "fl_all")


def by_hand(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Every number from lists of pixels, in Python floats."""
    rows: list[tuple[float, float, float]] = []
    lost = 0
    for image in range(len(truth)):
        for y, x in np.ndindex(truth.shape[2:]):
            u, v = (float(truth[image, c, y, x]) for c in (0, 1))
            a, b = (float(prediction[image, c, y, x]) for c in (0, 1))
            if not (abs(u) <= 1e6 and abs(v) <= 1e6) or (valid is not None and not valid[image, y, x]):
                continue
            if math.isfinite(a) and math.isfinite(b):
                rows.append((math.hypot(a - u, b - v), math.hypot(u, v), angle(a, b, u, v)))
            else:
                lost += 1

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    return {
        "epe": mean([e for e, *_ in rows]),
        "epe_0_10": mean([e for e, s, _ in rows if s < 10]),
        "epe_10_40": mean([e for e, s, _ in rows if 10 <= s < 40]),
        "epe_40_plus": mean([e for e, s, _ in rows if s >= 40]),
        "out_1px": mean([float(e > 1) for e, *_ in rows]),
        "out_3px": mean([float(e > 3) for e, *_ in rows]),
        "out_5px": mean([float(e > 5) for e, *_ in rows]),
        "fl_all": mean([float(e > 3 and e > 0.05 * s) for e, s, _ in rows]),
        "aae": mean([a for *_, a in rows]),
        "pixels": len(rows),
        "nan_predictions": lost,
    }


def angle(a: float, b: float, u: float, v: float) -> float:
    """Degrees between (a, b, 1) and (u, v, 1), from the lengths of the sum and the difference of the unit vectors."""
    ours, theirs = math.hypot(a, b, 1), math.hypot(u, v, 1)
    unit = [(x / ours, y / theirs) for x, y in ((a, u), (b, v), (1, 1))]
    apart, together = math.hypot(*(x - y for x, y in unit)), math.hypot(*(x + y for x, y in unit))
    return math.degrees(2 * math.atan2(apart, together))


def random_pair(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images, height, width = shape
    truth = (rng.normal(0, 1, (images, 2, height, width)) * rng.choice([3, 20, 90], (images, 1, 1, 1))).astype(
        np.float32
    )
    prediction = truth + rng.normal(0, 3, truth.shape).astype(np.float32)
    for array, bad in ((truth, [np.nan, np.inf, -np.inf, 1.67e9]), (prediction, [np.nan, np.inf, -np.inf])):
        hit = rng.random(array.shape) < 0.05
        array[hit] = rng.choice(bad, hit.sum())
    return prediction, truth, rng.random((images, height, width)) < 0.8


def computed(*arguments: jit.Array | None) -> dict[str, float]:
    errors = FlowErrors()
    errors.update(*arguments)  # pyright: ignore[reportArgumentType]
    return errors.compute()


def same(found: dict[str, float], expected: dict[str, float], rel: float = 1e-5) -> None:
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=rel, nan_ok=True)


def test_one_pixel_of_each_kind() -> None:
    # true (3, 4), (24, 32), (0, 0), (80, 0): lengths 5, 40, 0, 80; errors 0.5, 4, 2, 4
    truth = np.array([[[3, 24, 0, 80]], [[4, 32, 0, 0]]], np.float32)
    prediction = truth + np.array([[[0.5, 0, 2, 0]], [[0, -4, 0, 4]]], np.float32)
    same(
        computed(prediction, truth),
        {
            "epe": (0.5 + 4 + 2 + 4) / 4,
            "epe_0_10": (0.5 + 2) / 2,
            "epe_10_40": math.nan,  # nothing is that fast: not 0
            "epe_40_plus": (4 + 4) / 2,  # 40 itself belongs here
            "out_1px": 3 / 4,
            "out_3px": 2 / 4,
            "out_5px": 0,
            "fl_all": 1 / 4,  # 4 is over 5 % of 40, and exactly 5 % of 80, which is not above
            "pixels": 4,
        },
    )


@pytest.mark.parametrize("error", [1, 3, 5])
def test_an_error_of_exactly_the_limit_is_no_outlier(error: int) -> None:
    truth = np.zeros((2, 1, 1), np.float32)
    prediction = truth + np.array([error, 0], np.float32)[:, None, None]
    assert computed(prediction, truth)[f"out_{error}px"] == 0


LAYOUTS = (
    *("BHW2", "BHW2 with a gap", "BHW2 cut out", "BHW2 upside down", "BHW2 every second"),
    *("cut out", "mirrored", "one of three"),
)


def laid(array: np.ndarray, layout: str) -> np.ndarray:
    """The same B2HW numbers, elsewhere in memory."""
    if layout == "double":
        return array.astype(np.float64)
    if layout == "BHW2":
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if layout == "BHW2 with a gap":  # of one number after each row: pairs do not begin at even places
        images, _, height, width = array.shape
        room = np.full((images, height, 2 * width + 1), 7, array.dtype)
        room[:, :, 0:-1:2], room[:, :, 1::2] = array[:, 0], array[:, 1]
        return np.lib.stride_tricks.as_strided(
            room, array.shape, (room.strides[0], array.itemsize, room.strides[1], 2 * array.itemsize)
        )
    if layout == "BHW2 cut out":
        return laid(np.pad(array, ((0, 0), (0, 0), (1, 2), (3, 2))), "BHW2")[:, :, 1:-2, 3:-2]
    if layout == "BHW2 upside down":
        return laid(array[:, :, ::-1], "BHW2")[:, :, ::-1]
    if layout == "BHW2 every second":
        return laid(np.repeat(array, 2, axis=3), "BHW2")[..., ::2]
    if layout == "cut out":
        return np.pad(array, ((0, 0), (0, 0), (1, 2), (3, 2)))[:, :, 1:-2, 3:-2]
    if layout == "mirrored":
        return np.ascontiguousarray(array[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    if layout == "one of three":
        return np.repeat(array.transpose(0, 2, 3, 1), 3, axis=3)[..., ::3].transpose(0, 3, 1, 2)
    return array


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 99),
    masked=st.booleans(),
    layout=st.sampled_from(["plain", "double", *LAYOUTS]),
    tensors=st.booleans(),
)
def test_any_shape_type_and_stride_gives_the_sums_of_a_loop(
    shape: tuple[int, int, int], seed: int, masked: bool, layout: str, tensors: bool
) -> None:
    prediction, truth, valid = random_pair(shape, seed)
    arrays = [laid(prediction, layout), laid(truth, layout), np.asfortranarray(valid) if masked else None]
    if tensors and layout not in ("mirrored", "BHW2 upside down"):  # torch knows no negative steps
        arrays = [None if a is None else torch.from_numpy(a) for a in arrays]
    same(computed(*arrays), by_hand(prediction, truth, valid if masked else None))


def test_no_copy_is_made_of_flow_in_any_order() -> None:
    for layout in ("plain", *LAYOUTS):
        array = laid(np.ones((2, 2, 5, 6), np.float32), layout)
        memory, places = flow_loops._memory(array)
        assert np.shares_memory(memory, array)
        pairs = layout.startswith("BHW2") and layout != "BHW2 every second"
        assert len(places) == (4 if pairs else 5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_large_errors_do_not_swallow_the_small_ones_beside_them(kind: type) -> None:
    rng = np.random.default_rng(0)
    errors = np.exp(rng.normal(0, 4, (1, 60, 1100))).astype(kind)  # from 1e-8 to 1e8 px
    errors[:, :, 0] = 3000
    errors[:, :, 1:512] = 1e-4  # a float32 of 3000 + 1e-4 is 3000: without vectors, all of a block could be lost
    prediction = np.stack([errors, np.zeros_like(errors)], axis=1)
    found = flow_sums(prediction, np.zeros_like(prediction))
    exact = math.fsum(errors.astype(np.float64).ravel().tolist())
    assert found[0, 4] == pytest.approx(exact, rel=1e-6 if kind is np.float32 else 1e-14)
    assert found[0, 0] == errors.size


def test_a_sum_of_float32_errors_is_off_by_as_much_as_is_documented_and_no_more() -> None:
    """1 + 2^-24 is 1 in float32: added one after the other, all of a block but its first error is lost, 511 x 2^-24."""
    lengths = np.full(512, 2.0**-24, np.float32)
    lengths[0] = 1
    zero = np.zeros_like(lengths)
    exact, bound = 1 + 511 * 2.0**-24, 512 * 2.0**-24
    memory, steps, block = np.concatenate([lengths, zero]), (0, 1024, 512, 512, 1), (0, 512, 0, 512, 0, 512)
    flows, one_by_one = (memory, steps, np.zeros_like(memory), steps), np.zeros((1, len(flow_loops.SUMS)))
    flow_loops._add_block(*flows, np.ones(512, np.uint8), 0, block, True, one_by_one, 0)
    assert one_by_one[0, 4] == 1  # of `_add_block` as it is written, without vectors
    assert 0.99 * bound * exact < exact - one_by_one[0, 4] <= bound * exact
    prediction = np.stack([lengths, zero])[:, None]
    found = flow_sums(prediction, np.zeros_like(prediction))
    assert abs(found[0, 4] - exact) <= bound * exact


def test_the_sums_of_an_image_are_as_a_rule_right_to_what_is_documented() -> None:
    """The reference adds the same float32 errors in float64; Sintel's size, errors of some pixels."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 10, (2, 436, 1024)).astype(np.float32)
    prediction = truth + rng.normal(0, 1, truth.shape).astype(np.float32)
    found = flow_sums(prediction, truth)[0]
    expected = flow_forms.numpy_sums(prediction, truth, np.ones(truth.shape[1:], np.bool_), True)
    assert found[4:7].sum() == pytest.approx(expected[4:7].sum(), rel=1e-8)
    assert found[11] == pytest.approx(expected[11], rel=1e-7)


def test_a_mean_over_many_pixels_does_not_drift() -> None:
    prediction = np.full((1, 2, 512, 2048), [[[[0.1]], [[0]]]], np.float32)  # in float32, sums of these stop growing
    found = flow_sums(prediction, np.zeros_like(prediction), angular=False)
    assert found[0, 4] / found[0, 0] == pytest.approx(float(np.float32(0.1)), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("rough", [0, 1, 2], ids=["no pixel is lost", "some in the second block", "some in both"])
def test_the_order_in_memory_changes_no_bit(layout: str, kind: type, rough: int) -> None:
    prediction, truth, valid = random_pair((2, 35, 700), seed=4)
    prediction, truth = prediction.astype(kind), truth.astype(kind)
    for flow in (prediction, truth):
        smooth = flow[..., : (700, 512, 0)[rough]]  # a block is 512 pixels of a row
        smooth[~(abs(smooth) < 1000)] = 1
    lost = flow_sums(prediction, truth, valid)[:, flow_loops.SUMS.index("lost")]
    assert (lost > 0).all() == (rough > 0)
    same(computed(prediction, truth, valid), by_hand(prediction, truth, valid))
    expected = flow_sums(prediction, truth, valid)
    np.testing.assert_array_equal(flow_sums(laid(prediction, layout), laid(truth, layout), valid), expected)
    np.testing.assert_array_equal(flow_sums(prediction, laid(truth, layout), np.asfortranarray(valid)), expected)
    np.testing.assert_array_equal(flow_sums(prediction, truth, valid, angular=False)[:, :-1], expected[:, :-1])


@pytest.mark.parametrize("masked", [True, False])
def test_the_numpy_form_and_the_torch_form_have_the_same_sums(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    prediction, truth, valid = random_pair((2, 101, 33), seed=5)
    mask = valid if masked else None
    compiled = flow_sums(prediction, truth, mask)
    tensors = [None if a is None else torch.from_numpy(a) for a in (prediction, truth, mask)]
    np.testing.assert_allclose(flow_forms.torch_sums(tensors[0], tensors[1], tensors[2], True), compiled, rtol=1e-6)
    monkeypatch.setattr(flow_loops, "_kernel", lambda: None)
    np.testing.assert_allclose(flow_sums(prediction, truth, mask), compiled, rtol=1e-6)


def test_the_numbers_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, truth, valid = random_pair((2, 327, 20), seed=1)  # 2 x 11 bands of 32 rows
    monkeypatch.setattr(flow_forms, "_PIXELS_FOR_THREADS", 0)
    sums = []
    for threads in (1, 3):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        assert jit.threads() == threads
        sums.append(flow_sums(prediction, truth, valid))
    np.testing.assert_array_equal(*sums)
    same(computed(prediction, truth, valid), by_hand(prediction, truth, valid))


def test_torch_sums_of_a_diverged_network_are_finite_too() -> None:
    prediction, truth = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)
    prediction[1] = 1e20  # whose square is infinite in float32
    sums = flow_forms.torch_sums(prediction, truth, None, False)
    np.testing.assert_allclose(sums[:, flow_loops.SUMS.index("error_slow")], [0, 16 * math.sqrt(2) * 1e20], rtol=1e-6)
    np.testing.assert_allclose(sums[:, :-1], flow_sums(prediction, truth, angular=False)[:, :-1], rtol=1e-12)


def test_flow_in_the_wrong_order_is_told_to_be_transposed() -> None:
    flow = np.zeros((4, 6, 2), np.float32)
    with pytest.raises(ValueError, match="transpose BHW2, which copies nothing"):
        flow_sums(flow, flow)


def test_without_angles_the_other_numbers_are_the_same() -> None:
    prediction, truth, valid = random_pair((2, 40, 30), seed=8)
    with_angles, without = FlowErrors(), FlowErrors(angular=False)
    for errors in (with_angles, without):
        errors.update(prediction, truth, valid)
    angles = {key: without.compute()[key] for key in ("aae", "aae_per_image")}
    assert all(math.isnan(value) for value in angles.values())
    assert without.compute() | angles == pytest.approx(with_angles.compute() | angles, rel=1e-12, nan_ok=True)


def test_the_numbers_do_not_depend_on_order_batches_or_processes() -> None:
    prediction, truth, valid = random_pair((7, 45, 30), seed=11)

    def share(*batches: list[int]) -> FlowErrors:
        errors = FlowErrors()
        for batch in batches:
            errors.update(prediction[batch], truth[batch], valid[batch])
        return errors

    whole = share([0, 1, 2, 3, 4, 5, 6]).compute()
    for shares in (
        [share([0, 2], [4, 6]), share([1, 3], [5])],
        [share([6, 5, 4]), share([3], [2]), share([0, 1])],
    ):
        merged = FlowErrors()
        for one in shares:
            merged.merge(one)
        assert merged.compute() == whole  # to the last bit


def test_tensors_of_half_precision_and_with_gradient_are_taken() -> None:
    truth = torch.zeros(1, 2, 3, 3)
    prediction = torch.full((1, 2, 3, 3), 1.5, dtype=torch.bfloat16, requires_grad=True)
    assert computed(prediction, truth, torch.ones(1, 3, 3, dtype=torch.uint8))["epe"] == pytest.approx(1.5 * 2**0.5)


def test_a_nan_prediction_is_counted_and_is_in_no_average() -> None:
    truth, prediction = np.zeros((2, 1, 3), np.float32), np.ones((2, 1, 3), np.float32)
    prediction[0, 0, 1] = np.nan
    found = computed(prediction, truth)
    assert (found["epe"], found["pixels"], found["nan_predictions"]) == (pytest.approx(2**0.5), 2, 1)


def test_unknown_truth_is_not_counted_however_it_is_marked() -> None:
    truth = np.zeros((2, 1, 5), np.float32)
    truth[0, 0, :4] = [np.nan, np.inf, 1.67e9, -2e6]
    prediction = np.full((2, 1, 5), np.nan, np.float32)
    prediction[:, 0, 4] = [3, 4]  # the only pixel that is known
    found = computed(prediction, truth)
    assert (found["epe"], found["pixels"], found["nan_predictions"]) == (5, 1, 0)


def test_nothing_known_gives_nan_and_no_pixels() -> None:
    found = computed(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.float32), np.zeros((4, 4), bool))
    assert found["pixels"] == found["images"] == 0
    assert all(math.isnan(found[key]) for key in (*KEYS, "epe_per_image"))


def test_the_mean_is_over_pixels_and_the_one_over_images_is_named() -> None:
    errors = FlowErrors()
    errors.update(np.full((2, 1, 4), 5, np.float32) * [[[1]], [[0]]], np.zeros((2, 1, 4), np.float32), names="a")
    errors.update(np.full((2, 1, 1), 10, np.float32) * [[[1]], [[0]]], np.zeros((2, 1, 1), np.float32), names="b")
    found = errors.compute()
    assert found["epe"] == pytest.approx(6)  # (4 * 5 + 10) / 5
    assert found["epe_per_image"] == pytest.approx(7.5)  # (5 + 10) / 2
    assert {name: row["epe"] for name, row in errors.per_image().items()} == {"a": 5, "b": 10}
    assert errors.grouped(lambda name: "both")["both"] == found


def test_merged_and_pickled_parts_equal_the_whole() -> None:
    prediction, truth, valid = random_pair((5, 8, 9), seed=3)
    names = list("abcde")
    whole, parts = FlowErrors(), [FlowErrors(), FlowErrors()]
    whole.update(prediction, truth, valid, names)
    for part, some in zip(parts, (slice(0, 3), slice(3, 5)), strict=True):
        part.update(prediction[some], truth[some], valid[some], names[some])
    merged = FlowErrors()
    for part in parts:
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12, nan_ok=True)
    with pytest.raises(ValueError, match="flow of a was scored twice"):
        merged.merge(parts[0])
    merged.reset()
    assert merged.compute()["pixels"] == 0


@pytest.mark.parametrize(
    ("prediction", "truth", "valid", "message"),
    [
        ((1, 2, 4, 5), (1, 2, 4, 6), None, r"\(1, 2, 4, 5\) and truth \(1, 2, 4, 6\)"),
        ((1, 3, 4, 5), (1, 3, 4, 5), None, "expected the same B2HW or 2HW"),
        ((2, 4, 5), (2, 4, 5), (5, 4), r"valid is \(5, 4\), expected \(4, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    prediction: tuple[int, ...], truth: tuple[int, ...], valid: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        flow_sums(np.zeros(prediction), np.zeros(truth), None if valid is None else np.zeros(valid))


def test_a_batch_with_too_few_names_is_refused() -> None:
    with pytest.raises(ValueError, match="1 names for 2 images"):
        FlowErrors().update(np.zeros((2, 2, 1, 1)), np.zeros((2, 2, 1, 1)), names=["a"])


def real_flows() -> list[Path]:
    """Flow files of Middlebury, FlyingChairs and Sintel, and a sparse one of KITTI."""
    if "MTSP_DATA" not in os.environ:
        pytest.skip("MTSP_DATA names no folder of real data sets")
    root = Path(os.environ["MTSP_DATA"])
    files = [*root.glob("Middlebury/**/*.flo"), *root.glob("FlyingChairs_release/data/*.flo")]
    return sorted([*files, *root.glob("MPI-Sintel/training/flow/**/*.flo"), *root.glob("KITTI/flow_gt.png")])


def test_on_real_flow_the_numbers_are_those_of_sums_in_double_precision() -> None:
    files = real_flows()
    assert files
    for file in files:
        if file.suffix == ".flo":
            truth, given = read_flo(file), None  # unknown flow as it is stored
        else:
            truth, given = read_kitti_flow(file)
        noise = np.random.default_rng(0).normal(0, 2, truth.shape)
        prediction = (truth + noise).astype(np.float32)
        found = computed(*(flow.transpose(2, 0, 1) for flow in (prediction, truth)), given)
        valid = (np.abs(truth) < 1e9).all(axis=2) if given is None else given
        a, u = prediction[valid].astype(np.float64).T, truth[valid].astype(np.float64).T
        error, speed = np.hypot(*(a - u)), np.hypot(*u)
        cosine = ((a * u).sum(axis=0) + 1) / np.sqrt(((a * a).sum(axis=0) + 1) * ((u * u).sum(axis=0) + 1))
        one = 1.01 / len(error)  # a pixel that rounding puts on the other side of a limit
        assert found["pixels"] == len(error), file
        assert found["epe"] == pytest.approx(error.mean(), rel=1e-6), file
        assert found["aae"] == pytest.approx(np.degrees(np.arccos(np.minimum(cosine, 1))).mean(), rel=1e-6), file
        for limit in (1, 3, 5):
            assert found[f"out_{limit}px"] == pytest.approx((error > limit).mean(), abs=one), file
        assert found["fl_all"] == pytest.approx(((error > 3) & (error > 0.05 * speed)).mean(), abs=one), file


def test_a_diverged_prediction_has_a_large_error_not_an_infinite_one() -> None:
    truth = np.zeros((1, 2, 40, 5), np.float32)
    prediction = np.zeros_like(truth)
    prediction[0, 0, 3, 2] = 1e20  # its square is beyond float32
    found = FlowErrors()
    found.update(prediction, truth)
    values = found.compute()
    assert (values["epe"], values["nan_predictions"]) == (pytest.approx(1e20 / 200), 0)


def test_errors_with_and_without_angles_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="with and without angles"):
        FlowErrors().merge(FlowErrors(angular=False))
