"""Flow errors against a loop over pixels, and the rules about what counts."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsp.metrics import FlowErrors, flow, flow_sums, native

KEYS = ("epe", "epe_0_10", "epe_10_40", "epe_40_plus", "out_1px", "out_3px", "out_5px", "fl_all")


def by_hand(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Every number from lists of pixels, in Python floats."""
    rows: list[tuple[float, float]] = []
    lost = 0
    for image in range(len(truth)):
        for y, x in np.ndindex(truth.shape[2:]):
            u, v = (float(truth[image, c, y, x]) for c in (0, 1))
            a, b = (float(prediction[image, c, y, x]) for c in (0, 1))
            if not (abs(u) <= 1e6 and abs(v) <= 1e6) or (valid is not None and not valid[image, y, x]):
                continue
            if math.isfinite(a) and math.isfinite(b):
                rows.append((math.hypot(a - u, b - v), math.hypot(u, v)))
            else:
                lost += 1

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    return {
        "epe": mean([e for e, _ in rows]),
        "epe_0_10": mean([e for e, s in rows if s < 10]),
        "epe_10_40": mean([e for e, s in rows if 10 <= s < 40]),
        "epe_40_plus": mean([e for e, s in rows if s >= 40]),
        "out_1px": mean([float(e > 1) for e, _ in rows]),
        "out_3px": mean([float(e > 3) for e, _ in rows]),
        "out_5px": mean([float(e > 5) for e, _ in rows]),
        "fl_all": mean([float(e > 3 and e > 0.05 * s) for e, s in rows]),
        "pixels": len(rows),
        "nan_predictions": lost,
    }


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


def computed(*arguments: flow.Array | None) -> dict[str, float]:
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


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 40)),
    seed=st.integers(0, 99),
    masked=st.booleans(),
    layout=st.sampled_from(["plain", "double", "BHW2"]),
)
def test_any_shape_type_and_stride_gives_the_sums_of_a_loop(
    shape: tuple[int, int, int], seed: int, masked: bool, layout: str
) -> None:
    prediction, truth, valid = random_pair(shape, seed)
    expected = by_hand(prediction, truth, valid if masked else None)
    if layout == "double":
        prediction, truth = prediction.astype(np.float64), truth.astype(np.float64)
    if layout == "BHW2":
        prediction, truth = (
            np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (prediction, truth)
        )
    same(computed(prediction, truth, valid if masked else None), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_the_numpy_form_and_the_torch_form_have_the_same_sums(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    prediction, truth, valid = random_pair((2, 101, 33), seed=5)
    mask = valid if masked else None
    compiled = flow_sums(prediction, truth, mask)
    tensors = [None if a is None else torch.from_numpy(a) for a in (prediction, truth, mask)]
    np.testing.assert_allclose(flow._torch_sums(*tensors), compiled, rtol=1e-6)
    monkeypatch.setattr(flow, "_kernel", lambda: None)
    np.testing.assert_allclose(flow_sums(prediction, truth, mask), compiled, rtol=1e-6)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_numbers_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    prediction, truth, valid = random_pair((1, 67, 20), seed=1)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert native.threads() == int(threads)
    same(computed(prediction, truth, valid), by_hand(prediction, truth, valid))


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
    assert errors.grouped(lambda name: "both")["both"].compute() == found


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


def test_the_compiled_loop_is_used_here() -> None:
    assert flow._kernel() is not None


def test_importing_the_metrics_imports_no_numba() -> None:
    code = "import sys, mtsp, mtsp.metrics; assert 'numba' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_numba_cannot_keep_its_cache_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.dispatcher import Dispatcher

    def refuse(self: Dispatcher) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    loop = native.compiled(_double)
    assert loop is not None
    assert loop(np.arange(3.0)) == 6


def test_a_disk_that_refuses_the_compiled_code_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import IndexDataCacheFile

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", refuse)
    loop = native.compiled(_triple)
    assert loop is not None
    assert loop(np.arange(3.0)) == 9


def test_without_numba_there_is_no_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert native.compiled(_double) is None


def _double(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += 2 * value
    return total


def _triple(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += 3 * value
    return total
