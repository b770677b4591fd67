"""Segmentation metrics from a confusion matrix that is summed over images, batches and processes.

Metrics pool the pixels of all images, as papers report them, except those with "image" in their name.
"""

import math
from collections.abc import Sequence

import numpy as np

from mtsp.metrics.checks import for_device, keep_rows, require_numbers
from mtsp.metrics.kernels.confusion import Counts, count_classes
from mtsp.metrics.kernels.exact_sum import ExactSums
from mtsp.metrics.kernels.jit import Array, on_host, plain


def confusion(prediction: Array, truth: Array, classes: int, ignore: int | None = 255) -> np.ndarray:
    """Return the confusion matrix, true class x predicted class, int64, classes x (classes + 1).

    The last column counts pixels without a predicted class: their label is out of range, or a score is NaN.

    Args:
        prediction: labels with the shape of `truth`, or class scores: BKHW for BHW labels, KHW for HW labels. The class
            with the highest score is predicted, of equal scores the lower class. Any numeric type and strides; counted
            on the prediction's device.
        truth: integer labels of any shape; BHW or HW if `prediction` holds scores.
        classes: number of classes K; labels are 0..K-1.
        ignore: pixels with this true label are not counted, even if it is below `classes`.

    Raises:
        ValueError: the shapes do not match, a true label is neither a class nor `ignore`, or an array does not hold
            numbers (see :func:`~mtsp.metrics.checks.require_numbers`).
        TypeError: an argument is neither a numpy array nor a torch tensor.
    """
    return _counts(prediction, truth, classes, ignore).table[:classes]


class ConfusionMatrix:
    """Confusion matrix of all pixels added so far, and the metrics computed from it.

    `miou` pools the pixels of all images, computes the IoU of each class, and averages over classes. Classes that occur
    neither in the ground truth nor in the predictions are absent: they are left out of every mean, and :meth:`absent`
    lists them. (EncNet's evaluation counts them as 0, others as 1.)

    PASCAL-Context has two conventions for background pixels. With 59 classes, background is ignored in the ground truth
    and never predicted. With 60 classes, background is a class. The network predicts it (`ConfusionMatrix(60)`), or its
    IoU counts as 0, as in the EncNet paper (:meth:`miou_with_missed`). :meth:`without` scores a network with 60 classes
    by the convention with 59.

    Args:
        classes: number of classes; labels are 0..classes-1.
        ignore: true label of pixels that are not counted; None to count all pixels.
    """

    def __init__(self, classes: int, ignore: int | None = 255) -> None:
        if classes < 1:
            raise ValueError(f"a confusion matrix needs at least 1 class, got {classes}")
        self.classes, self.ignore = classes, ignore
        self.counts = np.zeros((classes, classes + 1), np.int64)  # true x predicted class; last column: no class
        self.image_sums = ExactSums(2)  # [sum of the image IoU, number of images with a known pixel]
        self.by_name: dict[str, np.ndarray] = {}  # image name -> [known pixels, correct pixels, image IoU]

    def update(self, prediction: Array, truth: Array, names: str | Sequence[str] | None = None) -> None:
        """Add one image or a batch of images.

        Args:
            prediction: labels or scores, as for :func:`confusion`.
            truth: true labels. With three or more axes, the first axis is the batch; with fewer, this is one image.
            names: names of the images, for :meth:`per_image`; None leaves these images out of it.

        Raises:
            ValueError: as :func:`confusion`; the number of names is wrong, or a name was added before.
        """
        counts = _counts(prediction, truth, self.classes, self.ignore)
        rows = _image_scores(counts.images, self.ignore)
        if names is not None:
            keep_rows(self.by_name, names, rows, "mask")
        self.counts += counts.table[: self.classes]
        seen = rows[rows[:, 0] > 0]
        self.image_sums.add([seen[:, 2].tolist(), [len(seen)]])

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of `other`. Raises ValueError if `classes` or `ignore` differ, or both have an image name."""
        if (self.classes, self.ignore) != (other.classes, other.ignore):
            ours, theirs = (f"{one.classes} classes (ignoring {one.ignore})" for one in (self, other))
            raise ValueError(f"cannot merge confusion matrices of {ours} and {theirs}; both need the same classes")
        keep_rows(self.by_name, other.by_name, other.by_name.values(), "mask")
        self.counts += other.counts
        self.image_sums.merge(other.image_sums)

    def reset(self) -> None:
        """Start over without any pixel."""
        self.__init__(self.classes, self.ignore)

    def compute(self) -> dict[str, float]:
        """Return all segmentation metrics as fractions in [0, 1]; NaN if no pixel was counted.

        Returns:
            `pixel_accuracy`: fraction of correct pixels; `mean_accuracy`: pixel accuracy of each class, averaged over
            the classes in the ground truth; `miou`: mean of :meth:`class_iou` over the classes that are not absent;
            `fw_iou`: mean of :meth:`class_iou` over the classes in the ground truth, weighted by their number of true
            pixels; `image_iou`: mean over images of the mean IoU of the classes in the image's ground truth or
            prediction; `pixels`: number of known pixels; `images`: number of images with a known pixel.
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
        """Return the intersection over union of each class, float64; NaN for absent classes."""
        true, predicted = self.counts.sum(axis=1), self.counts[:, :-1].sum(axis=0)
        return _iou(true, predicted, np.diagonal(self.counts), self.ignore)

    def absent(self) -> list[int]:
        """Return the classes that occur neither in the ground truth nor in the predictions."""
        return np.flatnonzero(np.isnan(self.class_iou())).tolist()

    def per_image(self) -> dict[str, dict[str, float]]:
        """Return `image_iou`, `pixel_accuracy` and `pixels` of each named image, sorted by name."""
        result: dict[str, dict[str, float]] = {}
        for name, (pixels, right, iou) in sorted(self.by_name.items()):
            accuracy = right / pixels if pixels else math.nan
            result[name] = {"image_iou": float(iou), "pixel_accuracy": float(accuracy), "pixels": int(pixels)}
        return result

    def miou_with_missed(self, missed: int = 1) -> float:
        """Return `miou` as if there were `missed` more classes with an IoU of 0: for 59 classes, miou * 59 / 60."""
        iou = self.class_iou()
        present = np.count_nonzero(~np.isnan(iou))
        return float(np.nansum(iou) / (present + missed)) if present else math.nan

    def without(self, label: int) -> "ConfusionMatrix":
        """Return a confusion matrix without the pixels of true class `label`; higher labels move down by one.

        Pixels of other classes that were predicted as `label` still count as wrong. The result has no values for
        single images.

        Raises:
            ValueError: `label` is not a class, or it is the only one.
        """
        if not 0 <= label < self.classes or self.classes < 2:
            raise ValueError(f"cannot leave out class {label} of {self.classes} classes")
        result = ConfusionMatrix(self.classes - 1, None)
        rest = np.delete(self.counts, label, axis=0)
        result.counts = np.delete(rest, label, axis=1)
        result.counts[:, -1] += rest[:, label]
        return result


def _counts(prediction: Array, truth: Array, classes: int, ignore: int | None) -> Counts:
    """Check the arguments and count pixels; a single image is counted as a batch of one."""
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
    """Return [known pixels, correct pixels, image IoU] of each image."""
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
        iou[..., ignore] = np.nan  # never true: a pixel predicted as `ignore` would add a class with IoU 0
    return iou
