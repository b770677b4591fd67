"""Classification scores against loops over images, and the rules about ties, lost logits and labels."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtsp.evaluation.confusions import worst_confusions
from mtsp.metrics import ClassificationScores, classification, image_scores


def by_hand(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, float]:
    """Every number from lists of images, in Python floats."""
    images, classes = logits.shape
    hits, nll, own, calibration = {1: 0, 5: 0}, [], {}, {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(classes), key=lambda k: (-row[k], k))
        for k in hits:
            hits[k] += label in order[:k]
        own.setdefault(label, []).append(order[0] == label)
        total = sum(math.exp(value - row[order[0]]) for value in row)
        nll.append(math.log(total) + row[order[0]] - row[label])
        calibration.setdefault(math.ceil(bins / total), []).append((order[0] == label, 1 / total))
    gaps = {b: abs(sum(right - sure for right, sure in pairs)) for b, pairs in calibration.items()}
    found = {
        "top1": hits[1] / images,
        "class_accuracy": sum(sum(one) / len(one) for one in own.values()) / len(own),
        "nll": sum(nll) / images,
        "ece": sum(gaps.values()) / images,
        "mce": max(gap / len(calibration[b]) for b, gap in gaps.items()),
        "images": images,
        "nan_predictions": 0,
    }
    return found | ({"top5": hits[5] / images} if classes > 5 else {})


def scored(
    logits: classification.Array, labels: classification.Array, ks: tuple[int, ...] = (1, 5)
) -> ClassificationScores:
    scores = ClassificationScores(logits.shape[1], ks=ks)
    scores.update(logits, labels)
    return scores


def test_four_images_worked_out_by_hand() -> None:
    # softmax of the logarithms of 1, 2, 5 over 8, and so on: the confidences are 5/8, 5/8, 6/8, 4/8
    logits = np.log([[1, 2, 5], [5, 1, 2], [1, 6, 1], [2, 2, 4]])
    scores = scored(logits, np.array([2, 1, 1, 0]))  # right, wrong, right, wrong
    found = scores.compute()
    assert found["top1"] == 2 / 4
    assert found["class_accuracy"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert found["nll"] == pytest.approx(-(math.log(5 / 8) + math.log(1 / 8) + math.log(6 / 8) + math.log(2 / 8)) / 4)
    # bins of 1/15: 5/8 and 5/8 in one, half of them right; 6/8 in one, right; 4/8 in one, wrong
    assert found["ece"] == pytest.approx((2 * (5 / 8 - 1 / 2) + (1 - 6 / 8) + 4 / 8) / 4)
    assert found["mce"] == pytest.approx(4 / 8)
    assert "top5" not in found  # of three classes every image would be right
    np.testing.assert_array_equal(scores.confusion()[:, :3], [[0, 0, 1], [1, 1, 0], [0, 0, 1]])
    assert worst_confusions(scores.confusion()) == [(0, 2, 1, 1), (1, 0, 1, 1 / 2)]


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 30),
    classes=st.integers(1, 12),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["float32", "float64", "transposed", "torch", "int labels"]),
)
def test_any_shape_type_and_stride_gives_the_numbers_of_a_loop(images: int, classes: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.choice([-2, 0, 0.75, 3, 3.5], (images, classes))  # many ties
    labels = rng.integers(0, classes, images)
    expected = by_hand(logits, labels)
    if kind == "transposed":
        logits = np.asfortranarray(logits)
    if kind in ("float32", "torch"):
        logits = logits.astype(np.float32)
    if kind == "torch":
        found = scored(torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels)).compute()
    else:
        found = scored(logits, labels.astype(np.uint8) if kind == "int labels" else labels).compute()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    logits = np.zeros((3, 7), np.float32)
    for form in (classification._numpy_scores(logits, np.array([0, 4, 5])),
                 classification._torch_scores(torch.from_numpy(logits), np.array([0, 4, 5]))):  # fmt: skip
        assert form.rank.tolist() == [0, 4, 5]
        assert form.prediction.tolist() == [0, 0, 0]
    found = scored(logits, np.array([0, 4, 5])).compute()
    assert (found["top1"], found["top5"]) == (1 / 3, 2 / 3)


def test_the_numpy_form_and_the_torch_form_find_the_same() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 4, (50, 9)).astype(np.float32), rng.integers(0, 9, 50)
    logits[3, 1], logits[4, 2], logits[5], logits[6, labels[6]] = np.nan, np.inf, -np.inf, -np.inf
    ours = classification._numpy_scores(logits, labels)
    for one, other in zip(ours, classification._torch_scores(torch.from_numpy(logits), labels), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert ours.rank[3:6].tolist() == ours.prediction[3:6].tolist() == [9, 9, 9]
    assert ours.nll[6] == math.inf  # the true class was ruled out


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_lost_logits_are_wrong_and_counted_and_in_no_likelihood(bad: float) -> None:
    logits, labels = np.log([[1.0, 3], [3, 1], [1, 3]]), np.array([1, 1, 1])
    logits[2, 1] = bad
    scores = scored(logits, labels)
    found = scores.compute()
    assert found["top1"] == found["class_accuracy"] == 1 / 3
    assert (found["images"], found["nan_predictions"]) == (3, 1)
    assert found["nll"] == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert scores.confusion().tolist() == [[0, 0, 0], [1, 1, 1]]


def test_nothing_seen_gives_nan_and_no_images() -> None:
    found = scored(np.zeros((0, 8), np.float32), np.zeros(0, np.int64)).compute()
    assert found.pop("images") == found.pop("nan_predictions") == 0
    assert all(math.isnan(value) for value in found.values())
    assert set(found) == {"top1", "top5", "class_accuracy", "ece", "mce", "nll"}


def test_the_numbers_do_not_depend_on_order_batches_or_processes() -> None:
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(0, 3, (23, 8)).astype(np.float32), rng.integers(0, 8, 23)
    whole, merged = scored(logits, labels), ClassificationScores(8)
    for part in (slice(20, 23), slice(0, 7), slice(7, 20)):
        merged.merge(pickle.loads(pickle.dumps(scored(logits[part], labels[part]))))
    assert merged.compute() == whole.compute()  # to the last bit
    assert (merged.confusion() == whole.confusion()).all()
    merged.reset()
    assert merged.compute()["images"] == 0


def test_other_ks_can_be_asked_for() -> None:
    scores = ClassificationScores(4, ks=(1, 2, 3, 4))
    scores.update(np.array([[4.0, 3, 2, 1]] * 3), np.array([0, 1, 2]))
    found = scores.compute()
    assert [found[f"top{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert "top4" not in found


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 3), [0, 3], r"label 3 of image 1 of the batch is not in 0..2"),
        ((2, 3), [-1, 0], r"label -1 of image 0"),
        ((2, 3), [0, 1, 2], r"logits \(2, 3\) and labels \(3,\): expected BK and B"),
        ((2, 3), [0.0, 1.0], "labels must be whole numbers, got float64"),
        ((2, 4), [0, 1], r"logits \(2, 4\) for 3 classes"),
    ],
)
def test_what_does_not_fit_is_named(shape: tuple[int, int], labels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationScores(3).update(np.zeros(shape), np.array(labels))


def test_scores_of_other_classes_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="cannot merge scores of 3 classes and 15 bins and 4 classes and 15 bins"):
        ClassificationScores(3).merge(ClassificationScores(4))
    with pytest.raises(ValueError, match="must be at least 1"):
        ClassificationScores(3, ks=(0,))


def test_one_image_can_be_scored_alone() -> None:
    one = image_scores(np.log([[1.0, 2, 5]]), np.array([1]))
    assert (one.rank.tolist(), one.prediction.tolist()) == ([1], [2])
    assert [*one.confidence, *one.nll] == pytest.approx([5 / 8, math.log(4)])


def test_predictions_without_logits_give_what_predictions_can() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(0, 2, (40, 8)).astype(np.float32), rng.integers(0, 8, 40)
    whole, predicted = scored(logits, labels), ClassificationScores(8)
    one = image_scores(logits, labels)
    predicted.update_predictions(one.prediction, labels, one.confidence)
    ours, theirs = predicted.compute(), whole.compute()
    assert ours.keys() == theirs.keys()
    assert {key for key, value in ours.items() if math.isnan(value)} == {"top5", "nll"}
    assert all(ours[key] == theirs[key] for key in ours if key not in ("top5", "nll"))
    assert (predicted.confusion() == whole.confusion()).all()
    predicted.merge(whole)
    assert (predicted.compute()["top1"], predicted.compute()["images"]) == (theirs["top1"], 80)
    assert math.isnan(predicted.compute()["top5"])


@pytest.mark.parametrize("known", [3, 5, 8])
def test_the_best_classes_of_each_image_give_the_accuracies_that_they_can(known: int) -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 2, (40, 8)).astype(np.float32), rng.integers(0, 8, 40)
    logits[7] = np.nan
    whole, predicted = scored(logits, labels, ks=(1, 3, 5)), ClassificationScores(8, ks=(1, 3, 5))
    one, best = image_scores(logits, labels), np.argsort(-logits, axis=1, kind="stable")[:, :known]
    best[7] = 8
    for some in (slice(0, 0), slice(0, 15), slice(15, 40)):
        predicted.update_predictions(best[some], labels[some], one.confidence[some])
    ours, theirs = predicted.compute(), whole.compute()
    assert {key for key, value in ours.items() if math.isnan(value)} == {"nll"} | ({"top5"} if known == 3 else set())
    assert all(ours[key] == theirs[key] for key in ours if not math.isnan(ours[key]))
    predicted.merge(whole)
    assert predicted.compute()["top3"] == theirs["top3"]
    predicted.update_predictions(best[:1, 0], labels[:1])
    assert math.isnan(predicted.compute()["top3"])


def test_predictions_without_confidences_are_not_calibrated() -> None:
    scores = ClassificationScores(3)
    scores.update_predictions(np.array([0, 3, 2]), np.array([0, 1, 1]))  # right, lost, wrong
    found = scores.compute()
    assert (found["top1"], found["images"], found["nan_predictions"]) == (1 / 3, 3, 1)
    assert all(math.isnan(found[key]) for key in ("ece", "mce", "nll"))
    scores.update_predictions(np.array([0]), np.array([0]), np.array([1.0]))
    assert math.isnan(scores.compute()["ece"])


@pytest.mark.parametrize(
    ("predictions", "labels", "confidences", "message"),
    [
        ([0, 1], [0], None, r"predictions \(2,\), labels \(1,\) and confidences \(2,\): expected B of each"),
        ([4], [0], None, "a prediction is not in 0..3"),
        ([[0, 2, 0]], [0], None, "a class is predicted twice for an image"),
        ([[[0]]], [0], None, r"predictions \(1, 1, 1\), labels \(1,\)"),
        (3, 0, None, r"predictions \(\), labels \(\) and confidences \(\): expected B of each"),
        ([0], [3], None, "a label is not in 0..2"),
        ([0.5], [0], None, "a prediction of type float64; expected a whole number"),
        ([0], [0], [1.5], "a confidence is outside"),
    ],
)
def test_predictions_that_do_not_fit_are_named(
    predictions: Any, labels: Any, confidences: list[float] | None, message: str
) -> None:
    known = None if confidences is None else np.array(confidences)
    with pytest.raises(ValueError, match=message):
        ClassificationScores(3).update_predictions(np.array(predictions), np.array(labels), known)
