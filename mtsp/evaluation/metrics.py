"""Metrics of each kind of data set: the list that evaluation, tables, files and reports read.

To add a metric, derive a class from :class:`Metric` and name it in :data:`METRICS`. The tracker and `results.json`
then have its numbers, the console and reports its `headlines`; the table and the CSV of tools/evaluate.py and
tools/score.py have its `columns`, their JSON has everything.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np

from mtsp.evaluation.confusions import worst_confusions
from mtsp.metrics import ClassificationScores, ConfusionMatrix, DavisMeasure, FlowErrors
from mtsp.metrics.kernels.jit import Array, as_numpy
from mtsp.types import IGNORE, Kind

_PASSES = ("clean", "final", "into_future", "into_past")


class Metric(Protocol):
    """Sums that add up over batches and processes, and the numbers that follow from them.

    Each attribute of an object has `merge` and `compute`, as the classes of :mod:`mtsp.metrics`.
    """

    label: ClassVar[str]
    """Key of the true label in a `Batch`. A batch without it is left out."""
    output: ClassVar[str]
    """Key of the prediction in `Outputs`. A network without it is not measured."""
    columns: ClassVar[tuple[str, ...]]
    """Numbers that the table and the CSV show."""
    headlines: ClassVar[tuple[str, ...]]
    """Numbers that the console and reports show."""
    total: ClassVar[str]
    """What the table's last row is called, such as "all pixels"."""

    def __init__(self, classes: int) -> None:
        """Start at nothing, for a network with `classes` channels in its output."""

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add a batch: the ids of its examples, the prediction (logits or class ids), the labels as in a `Batch`."""

    def merge(self, other: Self) -> None:
        """Add what another process measured."""
        for name, sums in vars(self).items():
            sums.merge(getattr(other, name))

    def compute(self) -> dict[str, float]:
        """Return the numbers of all examples; NaN where nothing was seen."""
        return {key: value for sums in vars(self).values() for key, value in sums.compute().items()}

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what only the JSON has, by class, image or sequence (`per_sequence` is in the table, too)."""
        ...


class VideoMasks(Metric):
    """J, F and IoU of the one object of each video by DAVIS's rules, and the accuracy of all pixels."""

    label, output = "mask", "mask_logits"
    columns = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "iou", "pixel_accuracy")
    headlines = ("J_mean", "F_mean", "iou", "pixel_accuracy")
    total = "mean over sequences"

    def __init__(self, classes: int = 2, *, every_frame: bool = False) -> None:
        if classes != 2:
            raise ValueError(
                f"masks of {classes} classes in a data set of videos, whose masks are object or background; set kind: "
                "images to score each class"
            )
        self.davis, self.pixels = DavisMeasure(every_frame=every_frame), ConfusionMatrix(2)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add masks; unknown pixels count neither for nor against the object."""
        self.pixels.update(prediction, labels["mask"])
        truth = as_numpy(labels["mask"])
        known = truth != IGNORE
        predicted = as_numpy(prediction if prediction.ndim == 3 else prediction.argmax(1)) == 1
        for place, name in enumerate(ids):
            self.davis.update(name, predicted[place], truth[place] == 1, known[place])

    def compute(self) -> dict[str, float]:
        """Return J, F and IoU as means over sequences, and accuracy and mIoU of all pixels."""
        pixels = self.pixels.compute()
        return self.davis.compute() | {key: pixels[key] for key in ("pixel_accuracy", "miou")}

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the numbers of each sequence and frame."""
        return {"per_sequence": self.davis.per_sequence()}


class VideoObjects(Metric):
    """J and F of each of several objects by DAVIS 2017's rules, from masks that number them."""

    label, output = "mask", "mask_logits"
    columns = ("JF_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
    headlines = ("JF_mean", "J_mean", "F_mean")
    total = "mean over objects"

    def __init__(
        self, classes: int = IGNORE, *, every_frame: bool = False, objects: Literal["first", "all"] = "first"
    ) -> None:
        self.davis = DavisMeasure(every_frame=every_frame, objects=objects)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add masks that hold the number of each object."""
        for place, name in enumerate(ids):
            self.davis.update_objects(name, prediction[place], labels["mask"][place], IGNORE)

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the number of objects, and the numbers of each sequence and object ("dogs-jump_1")."""
        sequences = self.davis.per_object().items()
        objects = {f"{name}_{number}": part for name, parts in sequences for number, part in parts.items()}
        counted = sum(bool(part["frames"]) for part in objects.values())
        return {"objects": counted, "per_sequence": self.davis.per_sequence(), "per_object": objects}


class ClassMasks(Metric):
    """IoU of each class and accuracies over all pixels."""

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
        """Return each class's IoU, the absent classes, the worst confusions, and the numbers of each image."""
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
        """Add flow, which is measured on the device where the prediction lies."""
        self.errors.update(prediction, labels["flow"], labels.get("flow_valid"), ids)

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the errors of each sequence (the folder of a name, else the name), pair and pass."""
        sequences = self.errors.grouped(lambda name: name.rpartition("/")[0] or name)
        passes = self.errors.grouped(lambda name: "/".join(part for part in name.split("/")[:2] if part in _PASSES))
        found: dict[str, Any] = {"per_sequence": sequences, "per_image": self.errors.per_image()}
        return found if "" in passes else found | {"per_pass": passes}


class ImageLabels(Metric):
    """Accuracies and calibration of the class of the whole image."""

    label, output = "label", "label_logits"
    columns = ("top1", "top5", "class_accuracy", "ece", "nll")
    headlines = ("top1", "top5")
    total = "all images"

    def __init__(self, classes: int) -> None:
        self.scores = ClassificationScores(classes)

    def update(self, ids: Sequence[str], prediction: Array, labels: Mapping[str, Any]) -> None:
        """Add logits of images."""
        self.scores.update(prediction, labels["label"])

    def details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return each class's own accuracy and the worst confusions."""
        accuracies = _by_class(self.scores.per_class().tolist(), classes)
        return {"accuracy_of_class": accuracies, "worst_pairs": _worst(self.scores.confusion(), classes, "images")}


METRICS: dict[Kind, tuple[type[Metric], ...]] = {
    "video": (VideoMasks, FlowFields),
    "images": (ClassMasks,),
    "pairs": (FlowFields,),
    "labeled": (ImageLabels,),
}
"""Metrics of each kind of data set, in the order in which they are shown."""


def headlines() -> tuple[str, ...]:
    """Return the headline numbers of all metrics, each once."""
    return tuple(dict.fromkeys(name for kind in METRICS.values() for metric in kind for name in metric.headlines))


def _worst(counts: np.ndarray, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    return [
        {"truth": _class(truth, names), "taken_for": _class(taken_for, names), unit: wrong, "share": share}
        for truth, taken_for, wrong, share in worst_confusions(counts)
    ]


def _by_class(values: Sequence[float], names: Sequence[str]) -> Any:
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else list(values)


def _class(label: int, names: Sequence[str]) -> str | int:
    return names[label] if label < len(names) else label
