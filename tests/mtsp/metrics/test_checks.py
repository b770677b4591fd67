"""What has no numbers in it is refused by every metric, by its name, and what has some is read wherever it lies."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mtsp.metrics import ClassificationScores, DavisMeasure, confusion, flow, flow_sums, image_scores
from mtsp.metrics import segmentation as of_masks
from mtsp.metrics.kernels import confusion as kernels

FLOW, VALID = np.zeros((1, 2, 2, 3), np.float32), np.ones((1, 2, 3), np.uint8)
LABELS, SCORES = np.zeros((1, 2, 3), np.int64), np.zeros((1, 4, 2, 3), np.float32)
LOGITS, CLASSES = np.zeros((5, 4), np.float32), np.zeros(5, np.int64)
MASK = np.ones((2, 3), np.uint8)

METRICS: dict[str, tuple[np.ndarray, str, Callable[[Any], Any]]] = {
    "flow": (FLOW, "prediction", lambda x: flow_sums(x, FLOW)),
    "true flow": (FLOW, "truth", lambda x: flow_sums(FLOW, x)),
    "known flow": (VALID, "valid", lambda x: flow_sums(FLOW, FLOW, x)),
    "labels": (LABELS, "prediction", lambda x: confusion(x, LABELS, 4)),
    "true labels": (LABELS, "truth", lambda x: confusion(SCORES, x, 4)),
    "scores": (SCORES, "prediction", lambda x: confusion(x, LABELS, 4)),
    "logits": (LOGITS, "logits", lambda x: image_scores(x, CLASSES)),
    "classes": (CLASSES, "labels", lambda x: ClassificationScores(4).update(LOGITS, x)),
    "predictions": (CLASSES, "predictions", lambda x: ClassificationScores(4).update_predictions(x, CLASSES)),
    "confidences": (CLASSES, "confidences", lambda x: ClassificationScores(4).update_predictions(CLASSES, CLASSES, x)),
    "mask": (MASK, "prediction", lambda x: DavisMeasure().update("a/1", x, MASK)),
    "objects": (MASK, "truth", lambda x: DavisMeasure().update_objects("a/1", MASK, x)),
}
KINDS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "objects": (lambda array: array.astype(object), " of type object; expected numbers"),
    "strings": (lambda array: array.astype(str), r" of type <U\d+; expected numbers"),  # "0" is no background
    "dates": (lambda array: array.astype("datetime64[s]"), r" of type datetime64\[s\]; expected numbers"),
    "spans": (lambda array: array.astype("timedelta64[s]"), r" of type timedelta64\[s\]; expected numbers"),
    "masked": (lambda array: np.ma.masked_equal(array, array.flat[0]), " has masked entries, which would be counted"),
    "float8": (lambda array: torch.from_numpy(array).float().to(torch.float8_e4m3fn), r" of type .*float\(\)"),
    "complex halves": (lambda array: torch.from_numpy(array).to(torch.complex32), " of type .*expected real numbers"),
    "sparse": (lambda array: torch.from_numpy(array).to_sparse(), r" has the layout .*to_dense\(\)"),
    "meta": (lambda array: torch.from_numpy(array).to("meta"), " is on the device meta, which has no numbers"),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_what_has_no_numbers_is_refused_by_its_name(metric: str, kind: str) -> None:
    array, what, measure = METRICS[metric]
    make, message = KINDS[kind]
    measure(array)  # fits, as numbers
    with pytest.raises(ValueError, match=what + message):
        measure(make(array))


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_no_array_is_refused_by_its_name(metric: str) -> None:
    array, what, measure = METRICS[metric]
    with pytest.raises(TypeError, match=f"{what} is a list; expected a numpy array or a torch tensor"):
        measure(array.tolist())


def test_complex_logits_and_confidences_are_refused() -> None:
    with pytest.raises(ValueError, match="logits of type complex64; logits are real numbers"):
        image_scores(LOGITS.astype(np.complex64), CLASSES)
    with pytest.raises(ValueError, match="confidences of type complex64; confidences are real numbers"):
        ClassificationScores(4).update_predictions(CLASSES, CLASSES, CLASSES.astype(np.complex64))


def test_a_mask_without_masked_entries_is_an_array() -> None:
    def unmasked(array: np.ndarray) -> np.ndarray:
        return np.ma.masked_equal(array, 7)

    assert confusion(unmasked(LABELS), LABELS, 4)[0, 0] == 6
    assert confusion(unmasked(SCORES), unmasked(LABELS), 4)[0, 0] == 6
    assert flow_sums(unmasked(FLOW), unmasked(FLOW), unmasked(VALID))[0, 0] == 6
    assert image_scores(unmasked(LOGITS), unmasked(CLASSES)).rank.tolist() == [0] * 5


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_of_numpy_is_an_array_of_one_image() -> None:
    assert confusion(np.asmatrix(LABELS[0]), np.asmatrix(LABELS[0]), 4)[0, 0] == 6
    assert image_scores(np.asmatrix(LOGITS), CLASSES).rank.tolist() == [0] * 5


def test_validity_that_is_complex_and_predictions_that_are_no_whole_numbers_are_told_by_their_type() -> None:
    with pytest.raises(ValueError, match="valid has type complex64"):
        flow_sums(FLOW, FLOW, VALID.astype(np.complex64))
    with pytest.raises(ValueError, match="a prediction of type float64; expected a whole number"):
        ClassificationScores(4).update_predictions(CLASSES.astype(float), CLASSES)


@pytest.mark.parametrize("other", ["backward", ">", np.longdouble], ids=str)
def test_a_prediction_on_a_device_is_compared_with_any_numpy_truth(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which torch cannot copy to the device as it is: steps backward, another byte order, long doubles."""
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(-2, 3, (1, 2, 2, 3)).astype(np.float32), rng.integers(0, 4, (1, 2, 3))
    expected = flow_sums(predicted, -predicted, VALID), confusion(labels, labels.clip(1), 4)
    for module in (flow, kernels, of_masks):
        monkeypatch.setattr(module, "on_host", lambda _: False)

    def given(array: np.ndarray) -> np.ndarray:
        if other == "backward":
            return np.flip(np.flip(array, -1).copy(), -1)
        kind = array.dtype.newbyteorder(other) if other == ">" else other
        return array if other is np.longdouble and array.dtype.kind != "f" else array.astype(kind)

    ours = torch.from_numpy(predicted)
    np.testing.assert_allclose(flow_sums(ours, given(-predicted), given(VALID)), expected[0], rtol=1e-6)
    found = confusion(torch.from_numpy(labels), given(labels.clip(1)), 4)
    np.testing.assert_array_equal(found, expected[1])
