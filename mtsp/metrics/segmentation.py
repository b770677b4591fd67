"""Segmentation accuracies from one confusion matrix, which adds up over images, batches and processes."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mtsp.metrics.native import Array, as_numpy, compiled, frozen, in_threads, on_host, threads


def confusion(prediction: Array, truth: Array, classes: int, ignore: int | None = 255) -> np.ndarray:
    """Return how often each true class (row) was predicted as each class (column): int64, classes x (classes + 1).

    The last column counts predictions that are no class: another label, or scores with a NaN among them.

    Args:
        prediction: labels of the shape of `truth`, or class scores: BKHW for BHW (KHW for HW), the highest one wins
            and of equal ones the first.
        truth: integer labels of any shape, with scores BHW or HW.
        classes: K; labels are 0..K-1.
        ignore: pixels of this true label are not counted, also when it is below `classes`.

    Raises:
        ValueError: shapes that do not fit together, or a true label that is neither a class nor `ignore`.
    """
    shape, scores = tuple(truth.shape), tuple(prediction.shape) != tuple(truth.shape)
    if scores and (len(shape) not in (2, 3) or tuple(prediction.shape) != (*shape[:-2], classes, *shape[-2:])):
        raise ValueError(
            f"prediction {tuple(prediction.shape)} for truth {shape} and {classes} classes: expected labels of that "
            f"shape, or scores {(*shape[:-2], classes, *shape[-2:])}"
        )
    if not on_host(prediction):
        table = _torch_table(prediction, truth, classes, ignore, scores)
    else:
        table = (_from_scores if scores else _from_labels)(as_numpy(prediction), as_numpy(truth), classes, ignore)
    wrong = int(table[classes + 1].sum())
    if wrong:
        raise ValueError(
            f"{wrong} pixels of the truth have a label that is neither one of {classes} classes nor {ignore} (ignored)"
        )
    return table[:classes]


class ConfusionMatrix:
    """How often each class was taken for each, over every pixel seen.

    Everything is pooled over pixels: `miou` is the mean over classes of the IoU of all images' pixels together, which
    is what papers report and is not the mean of the images' own IoU.

    Args:
        classes: labels are 0..classes-1.
        ignore: true label of pixels that do not count; None for none.
    """

    def __init__(self, classes: int, ignore: int | None = 255) -> None:
        if classes < 1:
            raise ValueError(f"a confusion matrix of {classes} classes; at least 1")
        self.classes, self.ignore = classes, ignore
        self.counts = np.zeros((classes, classes + 1), np.int64)  # truth x prediction; last column: no class

    def update(self, prediction: Array, truth: Array) -> None:
        """Add labels or scores of one image or a batch; see :func:`confusion`."""
        self.counts += confusion(prediction, truth, self.classes, self.ignore)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add what `other` has seen. Raises ValueError if it counts other classes."""
        if (self.classes, self.ignore) != (other.classes, other.ignore):
            ours, theirs = (f"{one.classes} classes, ignoring {one.ignore}" for one in (self, other))
            raise ValueError(f"confusion matrices of {ours}, and of {theirs}, do not add up")
        self.counts += other.counts

    def reset(self) -> None:
        """Forget every pixel."""
        self.counts[:] = 0

    def compute(self) -> dict[str, float]:
        """Return the pooled accuracies as fractions in [0, 1], NaN where nothing was seen.

        Returns:
            `pixel_accuracy`: correct pixels of all; `mean_accuracy`: mean over the classes in the truth of their own;
            `miou`: mean of :meth:`class_iou` over the classes that are not absent; `fw_iou`: the same weighted by the
            classes' true pixels; `pixels`: the count.
        """
        right, true = np.diagonal(self.counts), self.counts.sum(axis=1)
        pixels, iou = int(true.sum()), self.class_iou()
        seen = true > 0
        return {
            "pixel_accuracy": int(right.sum()) / pixels if pixels else math.nan,
            "mean_accuracy": float((right[seen] / true[seen]).mean()) if pixels else math.nan,
            "miou": float(np.nanmean(iou)) if pixels else math.nan,
            "fw_iou": float((iou[seen] * true[seen]).sum() / pixels) if pixels else math.nan,
            "pixels": pixels,
        }

    def class_iou(self) -> np.ndarray:
        """Return each class's intersection over union, float64; NaN for absent classes."""
        right = np.diagonal(self.counts)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - right
        return np.divide(right, union, out=np.full(self.classes, np.nan), where=union > 0)

    def absent(self) -> list[int]:
        """Return the classes that occur neither in the truth nor in the predictions."""
        return np.flatnonzero(np.isnan(self.class_iou())).tolist()


def _from_labels(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    prediction, truth = _labels(prediction, "prediction").ravel(), _labels(truth, "truth").ravel()
    code = _label_kernel()

    def count(part: slice) -> np.ndarray:
        if code is None:
            return _binned(prediction[part], truth[part], classes, ignore)
        table = np.zeros((4, classes + 2, classes + 1), np.int64)
        code(frozen(prediction[part]), frozen(truth[part]), _none(ignore), table)
        return table.sum(axis=0)

    return _total(in_threads(count, _parts(truth.size)), classes)


def _from_scores(scores: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    truth = _labels(truth, "truth")
    if truth.ndim == 2:
        scores, truth = scores[None], truth[None]
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float32)
    code = _score_kernel()

    def count(task: tuple[int, slice]) -> np.ndarray:
        image, rows = task
        if code is None:
            ours, theirs = scores[image, :, rows], truth[image, rows]
            return _binned(np.where(np.isnan(ours).any(axis=0), classes, ours.argmax(axis=0)), theirs, classes, ignore)
        table = np.zeros((classes + 2, classes + 1), np.int64)
        code(frozen(scores[image]), frozen(truth[image]), rows.start, rows.stop, _none(ignore), table)
        return table

    images, height = truth.shape[:2]
    tasks = [(image, part) for image in range(images) for part in _parts(height, 1)] if truth.size else []
    return _total(in_threads(count, tasks), classes)


def _labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} of type {labels.dtype}; labels are whole numbers")
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def _none(ignore: int | None) -> int:
    return -(1 << 62) if ignore is None else ignore


def _parts(size: int, least: int = 1 << 16) -> list[slice]:
    """Cut `size` items into one part for each thread, of at least `least`."""
    step = max(least, -(-size // threads()))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _total(tables: list[np.ndarray], classes: int) -> np.ndarray:
    """Return the sum: rows are the true classes, ignored pixels, illegal labels."""
    return sum(tables, np.zeros((classes + 2, classes + 1), np.int64))


@functools.cache
def _label_kernel() -> Callable[..., Any] | None:
    return compiled(_count_labels)


@functools.cache
def _score_kernel() -> Callable[..., Any] | None:
    return compiled(_count_scores)


def _count_labels(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, ignore: int, table: np.ndarray
) -> None:
    """Add flat labels to four tables in turn: neighbors have the same label, and one counter would wait for itself."""
    classes = table.shape[2] - 1
    for i in range(truth.size):
        label, guess = np.int64(truth[i]), np.int64(prediction[i])
        row = label if (label >= 0) & (label < classes) else classes + 1
        row = classes if label == ignore else row
        column = guess if (guess >= 0) & (guess < classes) else classes
        table[i & 3, row, column] += 1


def _count_scores(  # pragma: no cover, runs as machine code
    scores: np.ndarray, truth: np.ndarray, start: int, stop: int, ignore: int, table: np.ndarray
) -> None:
    """Add rows of one image, KHW scores and HW labels: a row's best classes, then their counts."""
    classes, _, width = scores.shape
    best, guess = np.empty(width, scores.dtype), np.empty(width, np.int32)
    for y in range(start, stop):
        for k in range(classes):
            plane = scores[k, y]
            if k == 0:
                for x in range(width):
                    best[x] = plane[x]
                    guess[x] = 0
            for x in range(width):
                score, held, old = plane[x], best[x], guess[x]
                # A NaN takes the place of any score, and keeps it, since nothing is greater than it.
                take = (score > held) | (score != score)
                best[x] = score if take else held
                guess[x] = np.int32(k) if take else old
        for x in range(width):
            label = np.int64(truth[y, x])
            row = label if (label >= 0) & (label < classes) else classes + 1
            row = classes if label == ignore else row
            table[row, guess[x] if best[x] == best[x] else classes] += 1


def _binned(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    """Return the table of labels of any shape, in numpy."""
    row = np.where((truth >= 0) & (truth < classes), truth, classes + 1).astype(np.int64)
    row[truth == _none(ignore)] = classes
    column = np.where((prediction >= 0) & (prediction < classes), prediction, classes).astype(np.int64)
    cells = (classes + 2) * (classes + 1)
    return np.bincount((row * (classes + 1) + column).ravel(), minlength=cells).reshape(classes + 2, classes + 1)


def _torch_table(prediction: Any, truth: Any, classes: int, ignore: int | None, scores: bool) -> np.ndarray:
    """Return the table of tensors, computed where the prediction lies."""
    import torch

    prediction, truth = prediction.detach(), torch.as_tensor(truth, device=prediction.device).long()
    if scores:
        best, guess = prediction.max(dim=-3)  # several times faster than argmax, and NaN wins, too
        prediction = torch.where(best.isnan(), classes, guess)
    column = torch.where((prediction >= 0) & (prediction < classes), prediction.long(), classes)
    row = torch.where((truth >= 0) & (truth < classes), truth, classes + 1)
    row = torch.where(truth == _none(ignore), classes, row)
    cells = (row * (classes + 1) + column).flatten()
    table = torch.bincount(cells, minlength=(classes + 2) * (classes + 1))
    return table.reshape(classes + 2, classes + 1).cpu().numpy()
