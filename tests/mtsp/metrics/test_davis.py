"""J, F and their statistics against slow independent forms, the official evaluation and published results."""

import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from data.files.masks import read_foreground
from mtsp.metrics import DavisMeasure, boundary_measure, region_and_boundary, region_similarity, statistics
from mtsp.metrics import region_boundary as boundary

DATA = Path(os.environ.get("MTSP_DATA", ""))
real_data = pytest.mark.skipif("MTSP_DATA" not in os.environ, reason="MTSP_DATA names no folder of real data")


def edges_by_hand(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    edges = np.zeros(mask.shape, bool)
    for y, x in np.ndindex(mask.shape):
        for ny, nx in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
            if ny < height and nx < width:
                edges[y, x] |= mask[ny, nx] != mask[y, x]
    return edges


def boundary_by_hand(prediction: np.ndarray, truth: np.ndarray, radius: int) -> float:
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = ys**2 + xs**2 <= radius**2
    ours, theirs = edges_by_hand(prediction), edges_by_hand(truth)
    if not ours.any() or not theirs.any():
        return float(not ours.any() and not theirs.any())
    precision = (ours & binary_dilation(theirs, disk)).sum() / ours.sum()
    recall = (theirs & binary_dilation(ours, disk)).sum() / theirs.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def random_mask(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Nothing, everything, noise, or a rectangle that may touch the border."""
    kind = rng.integers(0, 5)
    if kind < 2:
        return np.full(shape, bool(kind))
    if kind == 2:
        return rng.random(shape) < rng.choice([0.01, 0.5])
    mask = np.zeros(shape, bool)
    (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in shape)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("compiled", [True, False])
def test_any_masks_give_the_measures_of_the_slow_forms(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(boundary, "_kernel", lambda: None)

    @settings(max_examples=60, deadline=None)
    @given(
        height=st.integers(1, 24),
        width=st.sampled_from([1, 2, 7, 31, 63, 64, 65, 127, 128, 130]),
        radius=st.sampled_from([1, 2, 3, 8, 70]),
        seed=st.integers(0, 10_000),
    )
    def check(height: int, width: int, radius: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        prediction, truth = random_mask((height, width), rng), random_mask((height, width), rng)
        union = (prediction | truth).sum()
        j = (prediction & truth).sum() / union if union else 1.0
        expected = (j, boundary_by_hand(prediction, truth, radius))
        assert region_and_boundary(prediction, truth, bound=radius) == expected

    check()


def test_the_compiled_loop_is_used_here() -> None:
    assert boundary._kernel() is not None


def test_small_masks_worked_out_by_hand() -> None:
    truth = np.array([[1, 1, 0], [1, 0, 0]], np.uint8)
    ours = np.array([[1, 1, 1], [0, 0, 0]], np.uint8)
    assert region_similarity(ours, truth) == 2 / 4
    # Boundaries: three pixels each, where a right, lower or lower-right neighbor differs.
    assert edges_by_hand(truth > 0).tolist() == [[True, True, False], [True, False, False]]
    assert edges_by_hand(ours > 0).tolist() == [[True, True, True], [False, False, False]]
    assert boundary_measure(ours, truth) == 1  # 0.008 of the diagonal is 0.03, rounded up to 1 pixel: all are matched
    assert boundary_measure(ours, truth, bound=0) == 2 * (2 / 3) * (2 / 3) / (4 / 3)  # two of three lie on each other


def test_the_tolerance_is_a_fraction_of_the_diagonal_rounded_up() -> None:
    truth, ours = np.zeros((480, 854), bool), np.zeros((480, 854), bool)
    truth[:, 400:], ours[:, 408:] = True, True
    assert boundary_measure(ours, truth) == 1  # ceil(0.008 * 979.66) = ceil(7.84) = 8 pixels
    ours[:, 408] = False
    assert boundary_measure(ours, truth) == 0


def test_empty_masks() -> None:
    empty, full = np.zeros((0, 4), bool), np.zeros((5, 0), bool)
    assert region_and_boundary(empty, empty) == region_and_boundary(full, full) == (1, 1)
    nothing, something = np.zeros((9, 9), bool), np.eye(9, dtype=bool)
    assert region_and_boundary(nothing, nothing) == (1, 1)
    assert region_and_boundary(nothing, something) == region_and_boundary(something, nothing) == (0, 0)
    assert region_and_boundary(np.array([[1]]), np.array([[1]])) == (1, 1)  # a single pixel has no boundary


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_the_object_is_what_is_not_zero_in_any_layout(kind: type) -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 20, 70)) < 0.3
    expected = region_and_boundary(prediction, truth)
    ours, theirs = (mask.astype(kind) * kind(1 if kind is bool else 255) for mask in (prediction, truth))
    assert region_and_boundary(np.asfortranarray(ours), torch.from_numpy(theirs)) == expected
    assert region_and_boundary(np.repeat(ours, 2, axis=1)[:, ::2], theirs) == expected
    assert region_and_boundary(ours[::-1, ::-1][::-1, ::-1], theirs.astype(np.dtype(kind).newbyteorder())) == expected


def test_statistics_of_eight_frames_worked_out_by_hand() -> None:
    # cuts round(linspace(1, 8, 5)) = 1, 2.75, 4.5, 6.25, 8 -> 1, 3, 5 (4.5 + 1e-10), 6, 8: quarters 1-3 and 6-8
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    assert statistics(values) == pytest.approx((0.55, 4 / 8, 0.8 - 0.3))  # 0.5 is not above 0.5


def test_one_value_does_not_decay_and_none_has_no_statistics() -> None:
    assert statistics([0.7]) == (0.7, 1, 0)
    assert all(math.isnan(value) for value in statistics([]))


def test_the_quarters_are_right_beyond_256_frames() -> None:
    # 8-bit cuts would take the last quarter of 401 frames from frame 300 - 256 on
    values = np.concatenate([np.ones(200), np.zeros(201)])
    assert statistics(values)[2] == 1


def frame(share: float) -> np.ndarray:
    """A mask of ten pixels in a row of which a share is predicted: J is the share."""
    mask = np.zeros((3, 12), bool)
    mask[1, : round(10 * share)] = True
    return mask


def test_first_and_last_frame_do_not_count_and_sequences_weigh_the_same() -> None:
    measure = DavisMeasure()
    for name, share in [
        ("a/8", 0.0),
        ("a/9", 0.6),
        ("a/10", 0.0),
        ("b/0", 0.0),
        ("b/1", 0.2),
        ("b/2", 0.4),
        ("b/3", 0.0),
    ]:
        measure.update(name, frame(share), frame(1))
    parts = measure.per_sequence()
    assert (parts["a"]["frames"], parts["a"]["J"]) == (["9"], [0.6])  # 10 is the last, not the second
    assert (parts["b"]["frames"], parts["b"]["J"]) == (["1", "2"], [0.2, 0.4])
    found = measure.compute()
    assert found["J_mean"] == found["iou"] == pytest.approx((0.6 + 0.3) / 2)  # not (0.6 + 0.2 + 0.4) / 3
    assert found["J_recall"] == 0.5
    assert parts["b"]["J_decay"] == pytest.approx(0.2 - 0.4)


def test_a_sequence_without_counting_frames_is_left_out_and_shown() -> None:
    measure = DavisMeasure()
    assert math.isnan(measure.compute()["J_mean"])
    for name in ("a/0", "a/1", "b/0", "b/1", "b/2"):
        measure.update(name, frame(0.5), frame(1))
    assert measure.compute()["J_mean"] == 0.5
    assert math.isnan(measure.per_sequence()["a"]["F_mean"])


def test_frames_of_two_processes_are_merged_in_any_order() -> None:
    whole, odd, even = DavisMeasure(), DavisMeasure(), DavisMeasure()
    for i in range(7):
        for measure in (whole, odd if i % 2 else even):
            measure.update(f"a/{i:05d}", frame(i / 7), frame(1))
    merged = DavisMeasure()
    for part in (odd, even):
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged.compute() == whole.compute()
    assert merged.per_sequence() == whole.per_sequence()
    with pytest.raises(ValueError, match="a/00001 was scored twice"):
        merged.merge(odd)
    merged.reset()
    assert not merged.per_sequence()


def test_frames_dealt_out_in_any_way_give_identical_numbers() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((2, 11, 9, 70)) < 0.4
    names = [f"{sequence}/{i}" for sequence, frames in (("a", 7), ("b", 4)) for i in range(frames)]
    results = []
    for processes in (1, 2, 3):
        parts = [DavisMeasure(bound=1) for _ in range(processes)]
        for i in rng.permutation(11):
            parts[i % processes].update(names[i], masks[0, i], masks[1, i])
        for part in parts[1:]:
            parts[0].merge(part)
        results.append(parts[0].per_sequence() | parts[0].compute())
    assert results[0] == results[1] == results[2]
    with pytest.raises(ValueError, match="cannot be merged"):
        DavisMeasure().merge(DavisMeasure(every_frame=True))


def test_every_frame_counts_when_asked_for() -> None:
    measure = DavisMeasure(every_frame=True)
    for name, share in (("a/0", 0.2), ("a/1", 0.6)):
        measure.update(name, frame(share), frame(1))
    assert measure.compute()["J_mean"] == pytest.approx(0.4)


def objects(*widths: int) -> np.ndarray:
    """Object i + 1 is the first `widths[i]` pixels of row 2 i + 1."""
    mask = np.zeros((2 * len(widths) + 1, 12), np.uint8)
    for i, width in enumerate(widths):
        mask[2 * i + 1, :width] = i + 1
    return mask


def test_several_objects_worked_out_by_hand() -> None:
    measure = DavisMeasure()
    # Sequence a has the objects 1 and 2 of its first frame; 3 comes later and is none of them.
    for name, prediction, truth in [
        ("a/0", objects(0, 0, 0), objects(10, 10, 0)),
        ("a/1", objects(5, 10, 7), objects(10, 10, 10)),
        ("a/2", objects(10, 0, 10), objects(10, 0, 10)),
        ("a/3", objects(0, 0, 0), objects(10, 10, 0)),
        ("b/0", objects(0), objects(10)),
        ("b/1", objects(2), objects(10)),
        ("b/2", objects(0), objects(10)),
    ]:
        measure.update_objects(name, prediction, truth)
    found = measure.per_object()
    assert {sequence: list(rows) for sequence, rows in found.items()} == {"a": [1, 2], "b": [1]}
    assert found["a"][1]["J"] == [0.5, 1.0]
    assert found["a"][2]["J"] == [1.0, 1.0]  # in neither mask of frame 2: agreement
    assert found["b"][1]["J"] == [0.2]
    assert measure.per_sequence()["a"]["J"] == [0.75, 1.0]
    assert measure.per_sequence()["a"]["J_mean"] == 0.875
    assert measure.compute()["J_mean"] == pytest.approx((0.75 + 1 + 0.2) / 3)  # over objects, not sequences
    assert measure.compute()["J_recall"] == pytest.approx((0.5 + 1 + 0) / 3)
    both = measure.compute()
    assert both["JF_mean"] == pytest.approx((both["J_mean"] + both["F_mean"]) / 2)


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_each_object_is_scored_as_a_mask_of_its_own_without_void(kind: type) -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 4, (2, 3, 20, 70)).astype(kind)
    truth[rng.random(truth.shape) < 0.2] = 255
    measure = DavisMeasure()
    for i in range(3):
        measure.update_objects(f"a/{i}", torch.from_numpy(prediction[i]), truth[i])
    for number, row in measure.per_object()["a"].items():
        known = truth[1] != 255
        j, f = region_and_boundary((prediction[1] == number) & known, (truth[1] == number) & known)
        assert (row["J"], row["F"]) == ([j], [f])
    assert list(measure.per_object()["a"]) == [1, 2, 3]


def test_one_object_by_number_is_one_mask() -> None:
    rng = np.random.default_rng(0)
    masks = (rng.random((2, 4, 9, 30)) < 0.5).astype(np.uint8)
    one, several = DavisMeasure(), DavisMeasure()
    for i in range(4):
        one.update(f"a/{i}", *masks[:, i])
        several.update_objects(f"a/{i}", *masks[:, i])
    assert one.compute() == several.compute()


def test_masks_that_cannot_be_compared_are_named() -> None:
    with pytest.raises(ValueError, match="dog/1: the predicted mask is 3x4, the true one 4x3"):
        DavisMeasure().update("dog/1", np.zeros((3, 4), bool), np.zeros((4, 3), bool))
    with pytest.raises(ValueError, match="dog/1: the predicted mask is 3x4, the true one 4x3"):
        DavisMeasure().update_objects("dog/1", np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8))
    with pytest.raises(ValueError, match="float64 and bool; compare scores with a threshold first"):
        region_similarity(np.zeros((3, 4)), np.zeros((3, 4), bool))


@real_data
def test_the_official_evaluation_of_real_masks_is_met_frame_by_frame() -> None:
    official = json.loads((DATA / "davis_evaluation/official.json").read_text())
    measure = DavisMeasure()
    for sequence in official["sequences"]:
        for file in (DATA / "DAVIS/Annotations/480p" / sequence).glob("*.png"):
            prediction = read_foreground(DATA / "davis_evaluation/predictions" / sequence / file.name)
            measure.update(f"{sequence}/{file.stem}", prediction, read_foreground(file))
    found = measure.per_sequence()
    assert found.keys() == official["sequences"].keys()
    for sequence, expected in official["sequences"].items():
        for key in "JF":
            assert found[sequence][key] == pytest.approx(expected[key], abs=1e-12)
            numbers = [found[sequence][f"{key}_{name}"] for name in ("mean", "recall", "decay")]
            assert numbers == pytest.approx(expected[f"{key}_stats"], abs=1e-12)
    for key in "JF":
        numbers = [measure.compute()[f"{key}_{name}"] for name in ("mean", "recall", "decay")]
        assert numbers == pytest.approx(official["mean_over_sequences"][f"{key}_stats"], abs=1e-12)


@real_data
@pytest.mark.parametrize(
    ("file", "published", "exact"),
    [
        (
            "segflow_semi_supervised",
            (0.761, 0.906, 0.121, 0.760, 0.855, 0.104),
            (0.7606, 0.9059, 0.1209, 0.7603, 0.8550, 0.1042),
        ),
        (
            "segflow_unsupervised",
            (0.674, 0.814, 0.062, 0.667, 0.771, 0.051),
            (0.6737, 0.8136, 0.0624, 0.6666, 0.7701, 0.0506),
        ),
    ],
)
def test_segflows_published_frames_give_its_published_statistics(
    file: str, published: tuple[float, ...], exact: tuple[float, ...]
) -> None:
    frames = json.loads((DATA / f"davis_site/{file}.json").read_text())
    sequences = [values for name, values in frames.items() if name != "id"]
    assert len(sequences) == 20
    rows = [[*statistics([float(v) for v in s["J"]]), *statistics([float(v) for v in s["F"]])] for s in sequences]
    found = np.mean(rows, axis=0)
    assert found == pytest.approx(exact, abs=6e-5)
    assert found == pytest.approx(published, abs=1e-3)  # of frames in three digits: one at 0.500 may be above or not


def near(edges: np.ndarray, others: np.ndarray, radius: float) -> int:
    """How many of `others` lie within `radius` of one of `edges`, by exact distances."""
    ours, theirs = np.argwhere(edges), np.argwhere(others)
    if not len(ours) or not len(theirs):
        return 0
    return int((np.square(ours[:, None] - theirs[None]).sum(-1).min(axis=0) <= radius**2).sum())


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 30),
    width=st.integers(1, 140),
    bound=st.sampled_from([1.0, 5.0, 9.0, 18.0, 70.0]),
)
def test_boundaries_near_the_borders_are_matched_at_any_radius(
    compiled: bool, seed: int, height: int, width: int, bound: float
) -> None:
    """Single pixels, also at the borders, and radii of 720p and 1080p (12 and 18 px) and beyond the image."""
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.random((height, width)) < 0.03 for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(boundary, "_kernel", lambda: None)
        found = boundary._counts(ours, theirs, bound)
    edges = [edges_by_hand(mask) for mask in (ours, theirs)]
    assert found[2:4] == [int(edge.sum()) for edge in edges]
    assert found[4:6] == [near(edges[1], edges[0], bound), near(edges[0], edges[1], bound)]


def test_two_dots_of_720p_that_lie_within_the_tolerance_match() -> None:
    prediction, truth = np.zeros((2, 720, 1280), np.uint8)
    prediction[300, 0] = truth[311, 2] = 1  # 11 rows and 2 columns apart, of 12 pixels
    assert region_and_boundary(prediction, truth) == (0.0, 1.0)


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf])
def test_a_bound_that_is_no_distance_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        region_and_boundary(np.ones((4, 4), bool), np.ones((4, 4), bool), bound)


def test_a_merge_that_fails_adds_nothing() -> None:
    one, other = DavisMeasure(), DavisMeasure()
    mask = np.ones((4, 4), bool)
    one.update("q/0", mask, mask)
    other.update("p/0", mask, mask)
    other.update("q/0", mask, mask)
    with pytest.raises(ValueError, match="q/0 was scored twice"):
        one.merge(other)
    assert list(one.frames) == ["q"]
