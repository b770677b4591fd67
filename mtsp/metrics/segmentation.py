"""Segmentation accuracies from one confusion matrix, which adds up over images, batches and processes.

Averages pool the pixels of all images, as papers report them, unless their name says image.
"""

import math
from collections.abc import Sequence

import numpy as np

from mtsp.metrics.checks import for_device, keep_rows, require_numbers
from mtsp.metrics.kernels.confusion import Counts, count_classes
from mtsp.metrics.kernels.exact_sum import ExactSums
from mtsp.metrics.kernels.jit import Array, on_host, plain


def confusion(prediction: Array, truth: Array, classes: int, ignore: int | None = 255) -> np.ndarray:
    """Return how often each true class (row) was predicted as each class (column): int64, classes x (classes + 1).

    The last column counts predictions of no class: another label, or scores with a NaN among them.

    Args:
        prediction: labels of the shape of `truth`, or class scores: BKHW for BHW (KHW for HW), the highest one wins
            and of equal ones the first. Any type, any strides; on the device where it lies.
        truth: integer labels of any shape, with scores BHW or HW.
        classes: K; labels are 0..K-1.
        ignore: pixels of this true label are not counted, also when it is below `classes`.

    Raises:
        ValueError: shapes that do not fit together, a true label that is neither a class nor `ignore`, or entries that
            are no numbers (see :func:`~mtsp.metrics.checks.require_numbers`).
        TypeError: an argument is no array.
    """
    return _counts(prediction, truth, classes, ignore).table[:classes]


class ConfusionMatrix:
    """Confusion matrix of all pixels seen, and the accuracies that follow from it.

    `miou` is the mean over classes of the IoU of all images' pixels together. Classes that occur neither in the truth
    nor in the predictions are absent: no mean counts them, and :meth:`absent` lists them. (EncNet's evaluation counts
    them as 0, others as 1.)

    PASCAL-Context has two conventions for pixels of no class of interest. With 59 classes, background is `ignore` in
    the truth, and no network predicts it. With 60, it is one more class, and a network predicts it
    (`ConfusionMatrix(60)`), or it is counted as never right, as by EncNet's paper (:meth:`miou_with_missed`).
    :meth:`without` scores 60 predicted classes on the pixels of the 59.

    Args:
        classes: labels are 0..classes-1.
        ignore: true label of pixels that do not count; None for none.
    """

    def __init__(self, classes: int, ignore: int | None = 255) -> None:
        if classes < 1:
            raise ValueError(f"a confusion matrix needs at least 1 class, got {classes}")
        self.classes, self.ignore = classes, ignore
        self.counts = np.zeros((classes, classes + 1), np.int64)  # truth x prediction; last column: no class
        self.image_sums = ExactSums(2)  # [sum of the images' IoU, images with a known pixel]
        self.by_name: dict[str, np.ndarray] = {}  # [known pixels, right ones, IoU] of the image

    def update(self, prediction: Array, truth: Array, names: str | Sequence[str] | None = None) -> None:
        """Add labels or scores of one image, or of a batch; arguments as for :func:`confusion`.

        Args:
            prediction: labels or scores.
            truth: labels. The first axis of three or more is images; what has fewer is one image.
            names: name of each image, under which :meth:`per_image` keeps its numbers; None keeps none.

        Raises:
            ValueError: as :func:`confusion`; the wrong number of names, or a name that was added before.
        """
        counts = _counts(prediction, truth, self.classes, self.ignore)
        rows = _image_scores(counts.images, self.ignore)
        if names is not None:
            keep_rows(self.by_name, names, rows, "mask")
        self.counts += counts.table[: self.classes]
        seen = rows[rows[:, 0] > 0]
        self.image_sums.add([seen[:, 2].tolist(), [len(seen)]])

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of `other`. Raises ValueError if it counts other classes, or both saw the same name."""
        if (self.classes, self.ignore) != (other.classes, other.ignore):
            ours, theirs = (f"{one.classes} classes, ignoring {one.ignore}" for one in (self, other))
            raise ValueError(f"confusion matrices of {ours} and of {theirs} cannot be merged")
        keep_rows(self.by_name, other.by_name, other.by_name.values(), "mask")
        self.counts += other.counts
        self.image_sums.merge(other.image_sums)

    def reset(self) -> None:
        """Forget every pixel."""
        self.__init__(self.classes, self.ignore)

    def compute(self) -> dict[str, float]:
        """Return the accuracies as fractions in [0, 1], NaN where nothing was seen.

        Returns:
            `pixel_accuracy`: correct pixels of all; `mean_accuracy`: mean accuracy of the classes in the truth; `miou`:
            mean of :meth:`class_iou` over the classes that are not absent; `fw_iou`: its mean over the classes in the
            truth, weighted by their true pixels; `image_iou`: mean over images of the mean IoU of the classes in the
            image's truth or prediction; the counts `pixels`, and `images` with a known pixel.
        """
        right, true = np.diagonal(self.counts), self.counts.sum(axis=1)
        pixels, iou = int(true.sum()), self.class_iou()
        seen = true > 0
        image_iou, images = self.image_sums.values()
        return {
            "pixel_accuracy": int(right.sum()) / pixels if pixels else math.nan,
            "mean_accuracy": float((right[seen] / true[seen]).mean()) if pixels else math.nan,
            "miou": float(np.nanmean(iou)) if pixels else math.nan,
            "fw_iou": float((iou[seen] * true[seen]).sum() / pixels) if pixels else math.nan,
            "image_iou": image_iou / images if images else math.nan,
            "pixels": pixels,
            "images": int(images),
        }

    def class_iou(self) -> np.ndarray:
        """Return each class's intersection over union, float64; NaN for absent classes."""
        true, predicted = self.counts.sum(axis=1), self.counts[:, :-1].sum(axis=0)
        return _iou(true, predicted, np.diagonal(self.counts), self.ignore)

    def absent(self) -> list[int]:
        """Return the classes that occur neither in the truth nor in the predictions."""
        return np.flatnonzero(np.isnan(self.class_iou())).tolist()

    def per_image(self) -> dict[str, dict[str, float]]:
        """Return `image_iou`, `pixel_accuracy` and `pixels` of each named image, by name, in the order of names."""
        result: dict[str, dict[str, float]] = {}
        for name, (pixels, right, iou) in sorted(self.by_name.items()):
            accuracy = right / pixels if pixels else math.nan
            result[name] = {"image_iou": float(iou), "pixel_accuracy": float(accuracy), "pixels": int(pixels)}
        return result

    def miou_with_missed(self, missed: int = 1) -> float:
        """Return `miou` with `missed` more classes whose IoU is 0: with 59 classes and one missed, miou * 59 / 60."""
        iou = self.class_iou()
        present = np.count_nonzero(~np.isnan(iou))
        return float(np.nansum(iou) / (present + missed)) if present else math.nan

    def without(self, label: int) -> "ConfusionMatrix":
        """Return the matrix as if pixels of the class `label` were unknown; higher labels are one lower in it.

        Other pixels for which it was predicted stay wrong. The numbers of single images are not in the result.

        Raises:
            ValueError: there is no such class, or no other.
        """
        if not 0 <= label < self.classes or self.classes < 2:
            raise ValueError(f"class {label} of {self.classes} cannot be left out")
        result = ConfusionMatrix(self.classes - 1, None)
        rest = np.delete(self.counts, label, axis=0)
        result.counts = np.delete(rest, label, axis=1)
        result.counts[:, -1] += rest[:, label]
        return result


def _counts(prediction: Array, truth: Array, classes: int, ignore: int | None) -> Counts:
    """Return the counts, with checks; an array of one image has a batch dimension in them."""
    require_numbers(prediction=prediction, truth=truth)
    prediction, truth = plain(prediction), plain(truth)
    shape, scores = tuple(truth.shape), tuple(prediction.shape) != tuple(truth.shape)
    if scores and (len(shape) not in (2, 3) or tuple(prediction.shape) != (*shape[:-2], classes, *shape[-2:])):
        or_scores = f", or scores {(*shape[:-2], classes, *shape[-2:])}" if len(shape) in (2, 3) else ""
        raise ValueError(
            f"prediction {tuple(prediction.shape)} for truth {shape} and {classes} classes: expected labels of that "
            f"shape{or_scores}"
        )
    for what, labels in (("truth", truth), ("prediction", prediction))[: 1 if scores else 2]:
        if not _whole(labels):
            raise ValueError(f"{what} of type {labels.dtype}; labels are whole numbers")
    if len(shape) < 3:
        prediction, truth = prediction[None], truth[None]
    truth = truth if on_host(prediction) else for_device(truth)
    counts = count_classes(prediction, truth, classes, ignore, scores=scores)
    if wrong := int(counts.table[classes + 1].sum()):
        raise ValueError(
            f"{wrong} pixels of the truth have a label that is neither one of {classes} classes nor {ignore} (ignored)"
        )
    return counts


def _image_scores(images: np.ndarray, ignore: int | None) -> np.ndarray:
    """Return [known pixels, right ones, IoU] of each image."""
    true, predicted, right = images.swapaxes(0, 1)
    iou = _iou(true, predicted, right, ignore)
    present = np.count_nonzero(~np.isnan(iou), axis=1)
    mean = np.divide(np.nansum(iou, axis=1), present, out=np.full(len(iou), np.nan), where=present > 0)
    return np.stack([true.sum(axis=1), right.sum(axis=1), mean], axis=1)


def _whole(labels: Array) -> bool:
    if isinstance(labels, np.ndarray):
        return labels.dtype == np.bool_ or np.issubdtype(labels.dtype, np.integer)
    return not (labels.is_floating_point() or labels.is_complex())


def _iou(true: np.ndarray, predicted: np.ndarray, right: np.ndarray, ignore: int | None) -> np.ndarray:
    """Return each class's IoU, ... x classes; NaN for absent classes and for `ignore`."""
    union = true + predicted - right
    iou = np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)
    if ignore is not None and 0 <= ignore < union.shape[-1]:
        iou[..., ignore] = np.nan  # never true: a single prediction of it would add a class with IoU 0
    return iou
