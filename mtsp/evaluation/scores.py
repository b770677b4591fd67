"""What predictions are worth, as numbers for JSON, CSV and a table in the terminal.

Lengths are pixels; J, F, IoU, accuracies and shares of outliers are fractions in [0, 1]; what was not measured is null
(empty in the CSV, a dash in the table), not 0.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from mtsp.evaluation.confusions import worst_confusions
from mtsp.evaluation.evaluate import Evaluation
from mtsp.metrics import ConfusionMatrix, DavisMeasure, FlowErrors
from mtsp.metrics.classification import ClassificationScores

SHOWN = {
    "mask": ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "iou", "pixel_accuracy"),
    "objects": ("JF_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"),
    "classes": ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"),
    "labels": ("top1", "top5", "class_accuracy", "ece", "nll"),
    "flow": ("epe", "epe_0_10", "epe_10_40", "epe_40_plus", "out_1px", "out_3px", "out_5px", "fl_all"),
}
"""What tables and CSV show of each kind; the JSON has everything."""

MOST_ROWS = 60
"""A table of more rows than this leaves out the objects; of more sequences, as FlyingChairs' 640 pairs, all of them."""

_DEPTHS = ("totals", "sequences", "objects")
"""What the rows of a table are, by the depth that :func:`_rows` says."""

_PASSES = ("clean", "final", "into_future", "into_past")
_TOTALS = {
    "mask": "mean over sequences",
    "objects": "mean over objects",
    "classes": "all pixels",
    "labels": "all images",
    "flow": "all pixels",
}


class Scores(NamedTuple):
    """What predictions are worth: numbers of the whole, as in the JSON, and of parts under `per_...` keys."""

    kind: Literal["mask", "objects", "classes", "labels", "flow"]
    values: dict[str, Any]


def mask_scores(davis: DavisMeasure, pixels: ConfusionMatrix) -> Scores:
    """Return J and F by DAVIS's rules, of all and `per_sequence`, and the accuracy of all pixels."""
    accuracy = pixels.compute()["pixel_accuracy"]
    return Scores("mask", davis.compute() | {"pixel_accuracy": accuracy, "per_sequence": davis.per_sequence()})


def object_scores(davis: DavisMeasure) -> Scores:
    """Return J and F by DAVIS 2017's rules, of all, `per_sequence`, and `per_object` by names like "dogs-jump_1"."""
    objects = {f"{name}_{number}": part for name, parts in davis.per_object().items() for number, part in parts.items()}
    counted = sum(bool(part["frames"]) for part in objects.values())
    values: dict[str, Any] = {**davis.compute(), "objects": counted, "per_sequence": davis.per_sequence()}
    return Scores("objects", values | {"per_object": objects})


def without_frames(scores: Scores) -> list[str]:
    """Return the videos of which no frame counts: by DAVIS's rules those of one or two."""
    if scores.kind not in ("mask", "objects"):
        return []
    return [name for name, part in scores.values["per_sequence"].items() if not part["frames"]]


def class_scores(pixels: ConfusionMatrix, names: Sequence[str] = ()) -> Scores:
    """Return IoU and accuracies over all pixels, each class's own IoU, the absent classes and the worst confusions."""
    found = pixels.compute() | {"class_iou": _named(pixels.class_iou().tolist(), names)}
    found["absent_classes"] = [_named_class(label, names) for label in pixels.absent()]
    found["worst_pairs"] = _worst(pixels.counts, names, "pixels")
    return Scores("classes", found | {"per_image": pixels.per_image()})


def label_scores(labels: ClassificationScores, names: Sequence[str] = ()) -> Scores:
    """Return accuracies and calibration over all images, each class's own accuracy, and the worst confusions."""
    accuracies = _named(labels.per_class().tolist(), names)
    worst = _worst(labels.confusion(), names, "images")
    return Scores("labels", labels.compute() | {"accuracy_of_class": accuracies, "worst_pairs": worst})


def _worst(counts: np.ndarray, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    return [
        {"truth": _named_class(truth, names), "taken_for": _named_class(taken_for, names), unit: wrong, "share": share}
        for truth, taken_for, wrong, share in worst_confusions(counts)
    ]


def _named(values: Sequence[float], names: Sequence[str]) -> Any:
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else list(values)


def _named_class(label: int, names: Sequence[str]) -> str | int:
    return names[label] if label < len(names) else label


def flow_scores(flow: FlowErrors) -> Scores:
    """Return the errors of all pairs, of each sequence (the folder of a name, else the name), pair and pass.

    Sums are added up in the order of names: the last digit does not depend on who measured which pair.
    """
    values: dict[str, Any] = {**flow.grouped(lambda _: "")[""].compute()}
    sequences = flow.grouped(lambda name: name.rpartition("/")[0] or name)
    values["per_sequence"] = {name: part.compute() for name, part in sequences.items()}
    values["per_image"] = flow.per_image()
    passes = flow.grouped(lambda name: "/".join(part for part in name.split("/")[:2] if part in _PASSES))
    if "" not in passes:
        values["per_pass"] = {name: part.compute() for name, part in passes.items()}
    return Scores("flow", values)


def scores_of(measured: Evaluation, names: Sequence[str] = ()) -> list[Scores]:
    """Return what was measured on one data set, one entry for each kind of label; `names` are those of its classes."""
    found = []
    if measured.davis is not None and measured.pixels is not None:
        found.append(mask_scores(measured.davis, measured.pixels))
    elif measured.pixels is not None:
        found.append(class_scores(measured.pixels, names))
    if measured.flow is not None:
        found.append(flow_scores(measured.flow))
    if measured.labels is not None:
        found.append(label_scores(measured.labels, names))
    return found


def joined(scores: Sequence[Scores]) -> dict[str, Any]:
    """Return the values of all kinds as one dict; a sequence that two kinds were measured on has both numbers."""
    values: dict[str, Any] = {}
    for one in scores:
        sequences = {name: dict(part) for name, part in values.get("per_sequence", {}).items()}
        for name, part in one.values.get("per_sequence", {}).items():
            sequences[name] = sequences.get(name, {}) | part
        values |= one.values
        if sequences:
            values["per_sequence"] = sequences
    return values


def plain(value: Any) -> Any:
    """Return `value` with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(entries: Mapping[str, Sequence[Scores]]) -> str:
    """Return the rows of all tables, `data` and `sequence` first; a number that a row does not have is empty."""
    kinds = {one.kind for scores in entries.values() for one in scores}
    keys = list(dict.fromkeys(key for kind, keys in SHOWN.items() if kind in kinds for key in keys))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["data", "sequence", *keys])
    for data, scores in entries.items():
        for one in scores:
            for name, values, _ in _rows(one, "all"):
                rows.writerow([data, name, *(plain(values.get(key)) for key in keys)])
    return text.getvalue()


def table(scores: Scores, title: str) -> Table:
    """Return the numbers of each sequence and of all."""
    keys = SHOWN[scores.kind]
    drawn = Table(title=Text(title, "table.title"), box=SIMPLE, pad_edge=False, collapse_padding=True)
    drawn.add_column("sequence", no_wrap=True)
    for key in keys:
        heading = key.replace("_", "\n").replace("pixel\naccuracy", "pixel\nacc.")
        drawn.add_column(heading, justify="right", no_wrap=True, min_width=5)
    rows = list(_rows(scores, _TOTALS[scores.kind]))
    depths = Counter(depth for _, _, depth in rows)
    # The totals always; beyond them as deep as there is room for all rows of a depth and of those above it.
    shown = max(depth for depth in depths if not depth or sum(depths[d] for d in range(1, depth + 1)) <= MOST_ROWS)
    for name, part, depth in rows:
        if depth <= shown:
            cells = ("-" if math.isnan(part.get(key, math.nan)) else f"{part[key]:.3f}" for key in keys)
            drawn.add_row(Text(name), *cells, style=None if depth else "bold")
    if hidden := [f"{depths[d]} {_DEPTHS[d]}" for d in sorted(depths) if d > shown]:
        drawn.caption = f"each of the {' and '.join(hidden)}: --csv or --json"
    return drawn


def _rows(scores: Scores, last: str) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """Yield name, numbers, and 2 for those of an object, 1 of a sequence, 0 of more than one."""
    objects: dict[str, dict[str, Any]] = {}
    for name, part in scores.values.get("per_object", {}).items():  # a number has no "_": the last one ends the name
        objects.setdefault(name.rpartition("_")[0], {})[name] = part
    for name, part in scores.values.get("per_sequence", {}).items():
        yield name, part, 1
        for one, of_object in objects.get(name, {}).items():
            yield one, of_object, 2
    for name, part in scores.values.get("per_pass", {}).items():
        yield name, part, 0
    yield last, scores.values, 0
