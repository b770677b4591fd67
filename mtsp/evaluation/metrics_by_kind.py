"""Metrics of each kind of data set, as evaluation, tables, files and reports use them.

To add a metric, derive a class from :class:`Metric` and list it in :data:`METRICS`. Its values then appear in the
tracker and in `results.json`, and its `headlines` on the console and in reports. The table and the CSV of
tools/evaluate.py and tools/score.py show its `columns`; their JSON has all values.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np

from mtsp.evaluation.confusions import worst_confusions
from mtsp.metrics import ClassificationScores, ConfusionMatrix, DavisMeasure, FlowErrors
from mtsp.metrics.kernels.jit import Array, as_numpy
from mtsp.types import IGNORE, Kind

_PASSES = ("clean", "final", "into_future", "into_past")


class Metric(Protocol):
    """A metric that accumulates sums over batches and processes.

    Every attribute of an instance must have `merge` and `compute`, as the classes of :mod:`mtsp.metrics` do.
    """

    label: ClassVar[str]
    """Key of the true label in a `Batch`. Batches without this key are skipped."""
    output: ClassVar[str]
    """Key of the prediction in `Outputs`. Networks without this output are not measured."""
    columns: ClassVar[tuple[str, ...]]
    """Values that the table and the CSV show."""
    headlines: ClassVar[tuple[str, ...]]
    """Values that the console and reports show."""
    total: ClassVar[str]
    """Title of the last row of the table, such as "all pixels"."""

    def __init__(self, classes: int) -> None:
        """Start without any example, for a network with `classes` output channels."""

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add a batch: ids of the examples, predictions (logits or class ids), and true labels by key of a `Batch`."""

    def merge(self, other: Self) -> None:
        """Add the sums that another process measured."""
        for name, sums in vars(self).items():
            sums.merge(getattr(other, name))

    def compute(self) -> dict[str, float]:
        """Return the values over all examples, by name; NaN without examples."""
        return {key: value for sums in vars(self).values() for key, value in sums.compute().items()}

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return values by class, image or sequence, for the JSON only (the table shows `per_sequence`, too)."""
        ...


class VideoMasks(Metric):
    """J, F and IoU of videos with one object each, by the rules of DAVIS, and the accuracy over all pixels."""

    label, output = "mask", "mask_logits"
    columns = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "iou", "pixel_accuracy")
    headlines = ("J_mean", "F_mean", "iou", "pixel_accuracy")
    total = "mean over sequences"

    def __init__(self, classes: int = 2, *, every_frame: bool = False) -> None:
        if classes != 2:
            raise ValueError(
                f"the network predicts {classes} classes, but masks of videos are scored as object and background; set "
                "kind: images to score each class"
            )
        self.davis, self.pixels = DavisMeasure(every_frame=every_frame), ConfusionMatrix(2)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add masks; unknown pixels are ignored."""
        self.pixels.update(prediction, labels["mask"])
        truth = as_numpy(labels["mask"])
        known = truth != IGNORE
        predicted = as_numpy(prediction if prediction.ndim == 3 else prediction.max(1).indices) == 1
        for place, name in enumerate(ids):
            self.davis.update(name, predicted[place], truth[place] == 1, known[place])

    def compute(self) -> dict[str, float]:
        """Return J, F and IoU as means over sequences, and pixel accuracy and mIoU over all pixels."""
        pixels = self.pixels.compute()
        return self.davis.compute() | {key: pixels[key] for key in ("pixel_accuracy", "miou")}

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the values of each sequence and frame."""
        return {"per_sequence": self.davis.per_sequence()}


class VideoObjects(Metric):
    """J and F of videos with several objects, by the rules of DAVIS 2017, from masks of object ids."""

    label, output = "mask", "mask_logits"
    columns = ("JF_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
    headlines = ("JF_mean", "J_mean", "F_mean")
    total = "mean over objects"

    def __init__(
        self, classes: int = IGNORE, *, every_frame: bool = False, objects: Literal["first", "all"] = "first"
    ) -> None:
        self.davis = DavisMeasure(every_frame=every_frame, objects=objects)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add masks of object ids."""
        for place, name in enumerate(ids):
            self.davis.update_objects(name, prediction[place], labels["mask"][place], IGNORE)

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the number of scored objects, and the values of each sequence and object ("dogs-jump_1")."""
        sequences = self.davis.per_object().items()
        objects = {f"{name}_{number}": part for name, parts in sequences for number, part in parts.items()}
        counted = sum(bool(part["frames"]) for part in objects.values())
        return {"objects": counted, "per_sequence": self.davis.per_sequence(), "per_object": objects}


class ClassMasks(Metric):
    """IoU and accuracy of each class, pooled over the pixels of all images."""

    label, output = "mask", "mask_logits"
    columns = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")
    headlines = ("miou", "pixel_accuracy")
    total = "all pixels"

    def __init__(self, classes: int) -> None:
        self.pixels = ConfusionMatrix(classes)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add masks of class ids."""
        self.pixels.update(prediction, labels["mask"], ids)

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the IoU of each class, the absent classes, the worst confusions, and the values of each image."""
        return {
            "class_iou": _by_class(self.pixels.class_iou().tolist(), classes),
            "absent_classes": [_class(label, classes) for label in self.pixels.absent()],
            "worst_pairs": _worst(self.pixels.counts, classes, "pixels"),
            "per_image": self.pixels.per_image(),
        }


class FlowFields(Metric):
    """End-point error, outliers and angular error over all known pixels."""

    label, output = "flow", "flow"
    columns = ("epe", "epe_0_10", "epe_10_40", "epe_40_plus", "out_1px", "out_3px", "out_5px", "fl_all")
    headlines = ("epe", "fl_all")
    total = "all pixels"

    def __init__(self, classes: int = 2) -> None:
        self.errors = FlowErrors()

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add flow, which is measured on the device of the prediction."""
        self.errors.update(prediction, labels["flow"], labels.get("flow_valid"), ids)

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the errors of each sequence, pair and pass. A sequence is the folder of a name, or else the name."""
        sequences = self.errors.grouped(lambda name: name.rpartition("/")[0] or name)
        passes = self.errors.grouped(lambda name: "/".join(part for part in name.split("/")[:2] if part in _PASSES))
        found: dict[str, Any] = {"per_sequence": sequences, "per_image": self.errors.per_image()}
        return found if "" in passes else found | {"per_pass": passes}


class ImageLabels(Metric):
    """Accuracies and calibration of image classification."""

    label, output = "label", "label_logits"
    columns = ("top1", "top5", "class_accuracy", "ece", "nll")
    headlines = ("top1", "top5")
    total = "all images"

    def __init__(self, classes: int) -> None:
        self.scores = ClassificationScores(classes)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add the logits of a batch of images."""
        self.scores.update(prediction, labels["label"])

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the accuracy of each class and the worst confusions."""
        accuracies = _by_class(self.scores.per_class().tolist(), classes)
        return {"accuracy_of_class": accuracies, "worst_pairs": _worst(self.scores.confusion(), classes, "images")}


METRICS: dict[Kind, tuple[type[Metric], ...]] = {
    "video": (VideoMasks, FlowFields),
    "images": (ClassMasks,),
    "pairs": (FlowFields,),
    "labeled": (ImageLabels,),
}
"""Metrics of each kind of data set, in display order."""


def headlines() -> tuple[str, ...]:
    """Return the names of the headline values of all metrics, without duplicates."""
    return tuple(dict.fromkeys(name for kind in METRICS.values() for metric in kind for name in metric.headlines))


def first_headlines() -> tuple[str, ...]:
    """Return the one value that stands for each metric, such as miou, without duplicates."""
    return tuple(dict.fromkeys(metric.headlines[0] for kind in METRICS.values() for metric in kind))


_LOWER = re.compile(r"(^|/)(loss|penalty|distance|ece|nll)(/|$)|(^|/)(epe|out_|fl_|[jf]_decay)[^/]*$", re.IGNORECASE)


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of the metric, such as `epe` or `chairs/epe`, is better."""
    return _LOWER.search(metric) is not None


def _worst(counts: np.ndarray, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    return [
        {"truth": _class(truth, names), "taken_for": _class(taken_for, names), unit: wrong, "share": share}
        for truth, taken_for, wrong, share in worst_confusions(counts)
    ]


def _by_class(values: Sequence[float], names: Sequence[str]) -> Any:
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else list(values)


def _class(label: int, names: Sequence[str]) -> str | int:
    return names[label] if label < len(names) else label
