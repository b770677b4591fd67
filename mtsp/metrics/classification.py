"""Image classification metrics: accuracies, likelihood and calibration, accumulated over batches and processes.

Classes are ranked by logit, highest first; of classes with equal logits, the lower class id comes first. The best class
has rank 0 and is the one that `argmax` returns. An image counts as correct in the top k if its true class has a rank
below k. Rates and probabilities are fractions in [0, 1]; the likelihood is in nats.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mtsp.metrics.checks import require_numbers
from mtsp.metrics.kernels.exact_sum import ExactSums
from mtsp.metrics.kernels.jit import Array, as_numpy, on_host, plain


class ImageScores(NamedTuple):
    """Scores of B images, one array of B values per field, as :func:`image_scores` computes them."""

    rank: np.ndarray
    """Rank of the true class, 0 = best, int64; the number of classes K where the logits are not finite."""
    prediction: np.ndarray
    """Predicted class (rank 0), int64; K where the logits are not finite."""
    confidence: np.ndarray
    """Softmax probability of the predicted class, float64; NaN where the logits are not finite."""
    nll: np.ndarray
    """Negative log-likelihood of the true class, float64; NaN where the logits are not finite."""


def image_scores(logits: Array, labels: Array) -> ImageScores:
    """Return rank, prediction, confidence and negative log-likelihood of each image.

    Logits count as not finite if they have no softmax: one of them is NaN or +infinity, or all are -infinity.
    Exponentials are computed in the precision of the logits (at least float32) and summed in float64.

    Args:
        logits: BK.
        labels: B integers in 0..K-1.

    Raises:
        ValueError: the shapes do not match, a label is not in 0..K-1, or an array does not hold real numbers (see
            :func:`~mtsp.metrics.checks.require_numbers`).
        TypeError: an argument is neither a numpy array nor a torch tensor.
    """
    require_numbers(logits=logits, labels=labels)
    logits, labels = plain(logits), plain(labels)
    if "complex" in str(logits.dtype):
        raise ValueError(f"logits of type {logits.dtype}; logits are real numbers")
    if len(logits.shape) != 2 or tuple(labels.shape) != tuple(logits.shape[:1]) or not logits.shape[1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected BK and B, with K of 1 or more"
        )
    truth = as_numpy(labels)
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels must be whole numbers, got {truth.dtype}; convert them to class ids")
    classes = logits.shape[1]
    wrong = np.flatnonzero((truth < 0) | (truth >= classes))
    if len(wrong):
        raise ValueError(f"label {truth[wrong[0]]} of image {wrong[0]} of the batch is not in 0..{classes - 1}")
    truth = truth.astype(np.int64)
    return _numpy_scores(as_numpy(logits), truth) if on_host(logits) else _torch_scores(logits, truth)


class ClassificationScores:
    """Accuracies, likelihood and calibration over all images added so far.

    An image with logits that are not finite (see :func:`image_scores`) counts as wrong, has neither likelihood nor
    confidence, and is counted in `nan_predictions`. Trust the other values only if `nan_predictions` is 0.

    Args:
        classes: number of classes K; labels are 0..K-1.
        ks: values of k for the top-k accuracies. Any k of at least K is left out, since every image would be correct.
        bins: number of equally wide confidence bins in (0, 1] for the calibration errors. A confidence on the edge
            between two bins belongs to the lower one.

    Raises:
        ValueError: `classes`, `bins` or one of `ks` is below 1.
    """

    def __init__(self, classes: int, ks: Sequence[int] = (1, 5), bins: int = 15) -> None:
        if classes < 1 or bins < 1 or min(ks, default=1) < 1:
            raise ValueError(f"classes, ks and bins must be at least 1, got {classes}, {list(ks)} and {bins}")
        self.classes, self.ks, self.bins = classes, tuple(ks), bins
        self.reset()

    def update(self, logits: Array, labels: Array) -> None:
        """Add a batch of BK logits and B labels. Raises as :func:`image_scores`, also if K is not `classes`."""
        require_numbers(logits=logits, labels=labels)
        if len(logits.shape) == 2 and logits.shape[1] != self.classes:
            raise ValueError(f"logits {tuple(logits.shape)} for {self.classes} classes")
        rank, prediction, confidence, nll = image_scores(logits, labels)
        truth = as_numpy(labels).astype(np.int64)
        self.ranks += np.bincount(rank, minlength=self.classes + 1)
        self.pairs.update(zip(truth.tolist(), prediction.tolist(), strict=True))

        kept = prediction < self.classes
        self._calibrate(confidence[kept], rank[kept] == 0, nll[kept])

    def update_predictions(self, predictions: Array, labels: Array, confidences: Array | None = None) -> None:
        """Add B images for which only the best M classes are known, not the logits.

        From then on, every metric that needs more than the best M classes is NaN.

        Args:
            predictions: B x M class ids, the best class of each image first, or B class ids; K where the logits were
                not finite.
            labels: B integers in 0..K-1.
            confidences: B softmax probabilities of the best classes, NaN where unknown. Unless all are known, the
                calibration errors are NaN.

        Raises:
            ValueError: the shapes do not match, a class id is out of range, an image has the same class twice, or a
                confidence is outside [0, 1].
        """
        given = {} if confidences is None else {"confidences": confidences}
        require_numbers(predictions=predictions, labels=labels, **given)
        if confidences is not None and "complex" in str(confidences.dtype):
            raise ValueError(f"confidences of type {confidences.dtype}; confidences are real numbers")
        best, truth = as_numpy(predictions), as_numpy(labels)
        confidence = (
            np.full(best.shape[:1], np.nan) if confidences is None else as_numpy(confidences).astype(np.float64)
        )
        if not best.shape[:1] == truth.shape == confidence.shape or best.ndim not in (1, 2) or best.shape[1:] == (0,):
            shapes = f"{best.shape}, labels {truth.shape} and confidences {confidence.shape}"
            raise ValueError(f"predictions {shapes}: expected B of each")
        for what, numbers, most in (("prediction", best, self.classes), ("label", truth, self.classes - 1)):
            if not np.issubdtype(numbers.dtype, np.integer):
                raise ValueError(f"a {what} of type {numbers.dtype}; expected a whole number")
            if ((numbers < 0) | (numbers > most)).any():
                raise ValueError(f"a {what} is not in 0..{most}")
        if ((confidence < 0) | (confidence > 1)).any():
            raise ValueError("a confidence is outside [0, 1]")
        best = (best if best.ndim == 2 else best[:, None]).astype(np.int64)
        prediction, lost = best[:, 0], best[:, 0] == self.classes
        in_order = np.sort(best[~lost], axis=1)
        if (in_order[:, 1:] == in_order[:, :-1]).any():
            raise ValueError("a class is predicted twice for an image")
        found = (best == truth[:, None]) & ~lost[:, None]
        rank = np.where(lost, self.classes, found.argmax(axis=1))[lost | found.any(axis=1)]
        self.ranks += np.bincount(rank, minlength=self.classes + 1)
        self.depth = min(self.depth, best.shape[1]) if len(best) else self.depth
        self.pairs.update(zip(truth.tolist(), prediction.tolist(), strict=True))
        kept = (prediction < self.classes) & ~np.isnan(confidence)
        self._calibrate(confidence[kept], (prediction == truth)[kept], np.zeros(np.count_nonzero(kept)))

    def merge(self, other: "ClassificationScores") -> None:
        """Add the images of `other`. Raises ValueError if its number of classes or bins differs."""
        if (self.classes, self.bins) != (other.classes, other.bins):
            ours, theirs = (f"{one.classes} classes and {one.bins} bins" for one in (self, other))
            raise ValueError(f"cannot merge scores of {ours} and {theirs}; both need the same number of each")
        self.ranks += other.ranks
        self.depth = min(self.depth, other.depth)
        self.pairs.update(other.pairs)
        self.seen += other.seen
        self.right += other.right
        self.sums.merge(other.sums)

    def reset(self) -> None:
        """Start over without any image."""
        # Number of images by the rank of their true class, where it is known; the last entry: logits not finite.
        self.ranks = np.zeros(self.classes + 1, np.int64)
        self.depth = math.inf  # number of best classes known for every image; infinite if all logits are known
        self.pairs: Counter[tuple[int, int]] = Counter()  # (true class, prediction) -> number of images
        self.seen, self.right = np.zeros(self.bins, np.int64), np.zeros(self.bins, np.int64)  # by confidence bin
        self.sums = ExactSums(self.bins + 1)  # sum of confidences in each bin; sum of negative log-likelihoods

    def compute(self) -> dict[str, float]:
        """Return all classification metrics; NaN without images, or where :meth:`update_predictions` gave too little.

        Returns:
            `top1`, `top5` and so on for each k in `ks`: fraction of images with the true class among the best k;
            `class_accuracy`: top-1 accuracy of each class, averaged over the classes that have images; `ece`, the
            expected calibration error: mean over images of `abs(accuracy - confidence)` of the image's bin (Guo et al.,
            "On Calibration of Modern Neural Networks", ICML 2017, section 2); `mce`, the maximum calibration error:
            the largest `abs(accuracy - confidence)` of any bin; `nll`: mean negative log-likelihood in nats; `images`:
            number of images; `nan_predictions`: number of images with logits that are not finite.
        """
        images = self.pairs.total()
        right = {1: sum(count for (label, prediction), count in self.pairs.items() if label == prediction)}
        right |= {k: int(self.ranks[:k].sum()) for k in self.ks if 1 < k < self.classes}
        lost = sum(count for (_, prediction), count in self.pairs.items() if prediction == self.classes)
        seen, *_, gaps = self.reliability()
        sure = seen.sum() == images - lost
        return {
            **{f"top{k}": _ratio(right[k], images if k <= self.depth else 0) for k in self.ks if k in right},
            "class_accuracy": float(np.nanmean(self.per_class())) if images else math.nan,
            "ece": _ratio(float((seen * np.nan_to_num(gaps)).sum()), images - lost if sure else 0),
            "mce": float(np.nanmax(gaps)) if sure and images > lost else math.nan,
            "nll": _ratio(self.sums.values()[-1], images - lost if self.depth == math.inf else 0),
            "images": images,
            "nan_predictions": lost,
        }

    def per_class(self) -> np.ndarray:
        """Return the top-1 accuracy of each class, K float64; NaN for classes without images."""
        true, right = np.zeros(self.classes), np.zeros(self.classes)
        for (label, prediction), images in self.pairs.items():
            true[label] += images
            right[label] += images if label == prediction else 0
        return np.divide(right, true, out=np.full(self.classes, np.nan), where=true > 0)

    def confusion(self) -> np.ndarray:
        """Return the confusion matrix, true class x predicted class, int64, K x (K + 1).

        The last column counts the images with logits that are not finite.
        """
        table = np.zeros((self.classes, self.classes + 1), np.int64)
        for pair, images in self.pairs.items():
            table[pair] = images
        return table

    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return four arrays with a value per confidence bin, for a reliability diagram.

        They are the number of images, the accuracy, the mean confidence, and `abs(accuracy - confidence)`; the last
        three are NaN in empty bins.
        """
        empty = np.full((2, self.bins), np.nan)
        sums = np.stack([self.right, self.sums.values()[:-1]])
        accuracy, confidence = np.divide(sums, self.seen, out=empty, where=self.seen > 0)
        return self.seen.copy(), accuracy, confidence, np.abs(accuracy - confidence)

    def _calibrate(self, confidence: np.ndarray, right: np.ndarray, nll: np.ndarray) -> None:
        places = np.clip(np.ceil(confidence * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self.seen += np.bincount(places, minlength=self.bins)
        self.right += np.bincount(places[right], minlength=self.bins)
        by_bin = np.argsort(places)
        edges = np.searchsorted(places[by_bin], range(1, self.bins))
        self.sums.add(column.tolist() for column in (*np.split(confidence[by_bin], edges), nll))


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


def _numpy_scores(logits: np.ndarray, labels: np.ndarray) -> ImageScores:
    logits = logits.astype(np.result_type(logits, np.float32), copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        return ImageScores(*_scores(np, logits, labels, logits.argmax(axis=1)))


def _torch_scores(logits: Any, labels: np.ndarray) -> ImageScores:
    """Compute the scores on the device of the logits; only four values per image are copied from there."""
    import torch

    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_best = logits == logits.amax(dim=1, keepdim=True)
    prediction = torch.where(is_best, classes, len(classes)).amin(dim=1)  # argmax may return a later maximum
    scores = _scores(torch, logits, torch.from_numpy(labels).to(logits.device), prediction)
    whole, real = (torch.stack(pair).cpu().numpy() for pair in (scores[:2], scores[2:]))
    return ImageScores(*whole, *real)


def _scores(xp: Any, logits: Any, labels: Any, prediction: Any) -> tuple[Any, Any, Any, Any]:
    """Return the fields of :class:`ImageScores`; `xp` is numpy or torch."""
    (images, count), device = logits.shape, logits.device
    rows, classes = xp.arange(images, device=device), xp.arange(count, device=device)
    best, own = xp.amax(logits, axis=1), logits[rows, labels]  # amax is NaN if any logit is NaN
    lost = ~xp.isfinite(best)
    total = xp.exp(logits - best[:, None]).sum(axis=1, dtype=xp.float64)
    nll = xp.log(total) + (xp.asarray(best, dtype=xp.float64) - own)
    before = (logits > own[:, None]) | ((logits == own[:, None]) & (classes < labels[:, None]))
    rank, prediction = xp.where(lost, count, before.sum(axis=1)), xp.where(lost, count, prediction)
    return rank, prediction, xp.where(lost, xp.nan, 1 / total), xp.where(lost, xp.nan, nll)
