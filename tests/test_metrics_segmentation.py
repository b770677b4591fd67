"""Confusion counts against a loop over pixels, and the averages made of them."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsp.metrics import ConfusionMatrix, confusion, segmentation


def by_hand(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    table = np.zeros((classes, classes + 1), np.int64)
    for guess, label in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if label != ignore:
            table[label, guess if 0 <= guess < classes else classes] += 1
    return table


def test_averages_of_a_table_worked_out_by_hand() -> None:
    # class 0: 3 true, 2 right, one taken for 1; class 1: 1 true, right; class 2: absent; one pixel ignored
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 0, 1, 1, 2]]), np.array([[0, 0, 0, 1, 255]]))
    found = matrix.compute()
    assert found["pixel_accuracy"] == 3 / 4
    assert found["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # the absent class is neither 0 nor 1
    assert found["fw_iou"] == pytest.approx((3 * 2 / 3 + 1 * 1 / 2) / 4)
    assert found["pixels"] == 4
    assert matrix.absent() == [2]
    assert matrix.class_iou() == pytest.approx([2 / 3, 1 / 2, math.nan], nan_ok=True)


def test_a_class_predicted_but_never_true_counts_as_zero() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1, 0]), np.array([0, 0]))
    assert matrix.compute()["miou"] == pytest.approx((1 / 2 + 0) / 2)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 30)),
    classes=st.integers(1, 6),
    ignore=st.sampled_from([255, 0, None]),
    kind=st.sampled_from([np.uint8, np.int64]),
    seed=st.integers(0, 99),
)
def test_labels_of_any_shape_and_type_give_the_counts_of_a_loop(
    shape: tuple[int, int, int], classes: int, ignore: int | None, kind: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(kind)
    if ignore is not None:
        truth[rng.random(shape) < 0.2] = ignore
    prediction = rng.integers(0, classes + 2, shape).astype(kind)  # some are no class
    expected = by_hand(prediction, truth, classes, ignore)
    np.testing.assert_array_equal(confusion(prediction, truth, classes, ignore), expected)
    np.testing.assert_array_equal(confusion(prediction.T, truth.T, classes, ignore), expected)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 20)),
    classes=st.integers(1, 5),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_scores_give_the_counts_of_their_argmax(
    shape: tuple[int, int, int], classes: int, last: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(shape) < 0.1, 255, rng.integers(0, classes, shape)).astype(np.uint8)
    scores = rng.integers(-2, 3, (shape[0], classes, *shape[1:])).astype(np.float32)  # many are equal: the first wins
    expected = by_hand(scores.argmax(axis=1), truth, classes, 255)
    if last:
        scores = np.ascontiguousarray(scores.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(confusion(scores, truth, classes), expected)


@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
def test_each_form_takes_labels_and_scores_and_finds_the_nan(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((2, 9, 11)) < 0.1, 255, rng.integers(0, 4, (2, 9, 11)))
    scores = rng.normal(size=(2, 4, 9, 11)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    scores[rng.random(scores.shape) < 0.05] = np.inf
    labels = np.where(np.isnan(scores).any(axis=1), 4, scores.argmax(axis=1))
    if form == "numpy":
        monkeypatch.setattr(segmentation, "_label_kernel", lambda: None)
        monkeypatch.setattr(segmentation, "_score_kernel", lambda: None)
    if form == "torch":
        monkeypatch.setattr(segmentation, "on_host", lambda _: False)
    expected = by_hand(labels, truth, 4, 255)
    assert expected[:, 4].sum() > 0
    for prediction in (scores, labels):
        np.testing.assert_array_equal(confusion(torch.from_numpy(prediction), torch.from_numpy(truth), 4), expected)
    one = confusion(torch.from_numpy(scores[0]), torch.from_numpy(truth[0]), 4)
    np.testing.assert_array_equal(one, by_hand(labels[0], truth[0], 4, 255))


def test_parts_merged_after_pickling_equal_the_whole() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 3, (2, 5, 8, 8))
    whole, merged = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(prediction, truth)
    for some in (slice(0, 1), slice(1, 5)):
        part = ConfusionMatrix(3)
        part.update(prediction[some], truth[some])
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged.compute() == whole.compute()
    merged.reset()
    assert merged.counts.sum() == 0
    with pytest.raises(ValueError, match="of 3 classes, ignoring 255, and of 4 classes, ignoring 255, do not add up"):
        merged.merge(ConfusionMatrix(4))


def test_all_ignored_gives_nan_and_no_pixels() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8))
    found = matrix.compute()
    assert found.pop("pixels") == 0
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 2), int), np.array([[0, 1], [7, 9]]), "2 pixels of the truth have a label that is neither"),
        (np.zeros((3, 2), int), np.zeros((2, 3), int), r"prediction \(3, 2\) for truth \(2, 3\)"),
        (np.zeros((1, 5, 2, 2)), np.zeros((1, 2, 2), int), r"or scores \(1, 3, 2, 2\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction of type float64; labels are whole numbers"),
    ],
)
def test_what_does_not_fit_is_named(prediction: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(prediction, truth, 3)


def test_a_matrix_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="0 classes"):
        ConfusionMatrix(0)
