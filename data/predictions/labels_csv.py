"""Write, read and score the predicted classes of labeled images in `labels.csv`, and report the accuracy of each class.

The table has a row per image. Its columns are `name`, `truth` (if known), `prediction`, `probability` (of the
prediction, six digits), and `prediction_2` to `prediction_5`, the next best classes. Classes have the names of the data
set, or numbers from 0 ("class 3"; a bare "3" is refused, since it may count from 0 or 1). Scoring needs only `name` and
`prediction`.
"""

import csv
import difflib
import io
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import normalize

import numpy as np

from data.files.list_files import read_text
from data.types import DataError, MissingDataError, SampleDataset
from mtsp.evaluation.confusions import class_rows, class_table, confused_pairs, draw_pairs
from mtsp.files.atomic_file import write_atomically
from mtsp.metrics import ClassificationScores
from mtsp.text import first_names
from mtsp.types import Examples

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger("mtsp")
BEST = 5
"""Number of best classes per image in the table."""


COLUMNS = ("name", "truth", "prediction", "probability", *(f"prediction_{rank}" for rank in range(2, BEST + 1)))
"""Columns that are read. Others are skipped, unless they look like one of these."""


class LabelPrediction(NamedTuple):
    """Predicted classes of one image."""

    position: int
    name: str
    truth: int | None
    label: int
    probability: float
    next_best: tuple[int, ...] = ()
    """The next best classes after `label`, at most four."""


def label_prediction(position: int, name: str, truth: int | None, logits: "Tensor") -> LabelPrediction:
    """Return the best classes of an image from its K logits; of equal logits, the lower class comes first."""
    label, *others = logits.argsort(descending=True, stable=True)[:BEST].tolist()
    return LabelPrediction(position, name, truth, label, float(logits.softmax(0)[label]), tuple(others))


def save_predictions(file: Path, classes: Sequence[str], predictions: Sequence[LabelPrediction]) -> None:
    """Write a row for each image.

    Args:
        file: CSV file to write; its folder is created if it does not exist.
        classes: class names; if empty, classes are numbered.
        predictions: at least one; either all or none have a true class.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    truth = ["truth"] if predictions[0].truth is not None else []
    others = [f"prediction_{rank}" for rank in range(2, len(predictions[0].next_best) + 2)]
    rows.writerow(["name", *truth, "prediction", "probability", *others])
    for one in predictions:
        known = [] if one.truth is None else [one.truth]
        *truth, best = (_name(label, classes) for label in (*known, one.label))
        rest = (_name(label, classes) for label in one.next_best)
        rows.writerow([one.name, *truth, best, f"{one.probability:.6f}", *rest])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.getvalue().encode())


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"  # a class may be called "3"


def score_predictions(file: Path, dataset: SampleDataset) -> ClassificationScores:
    """Return the scores of the predictions in a table. Rows of images that are not in `dataset` are skipped.

    The likelihood is NaN, since it needs the probabilities of all classes. Top-5 accuracy is NaN if an image lacks one
    of its five best classes, and the calibration errors are NaN if a probability is missing. A prediction with the
    probability "nan", written for logits that were not finite, counts as wrong.

    Args:
        file: the table, or a folder with a labels.csv.
        dataset: labeled images.

    Raises:
        MissingDataError: the table does not exist, or images have no row; the message has their number and the first
            ten.
        DataError: a row cannot be read, an image has two rows, the data set does not have a class, or the true class
            in the table differs from the data set.
    """
    file = file / "labels.csv" if file.is_dir() else file
    classes: tuple[str, ...] = getattr(dataset, "classes", ())
    known = {name: label for label, name in enumerate(classes)}
    numbers = {f"class {label}": label for label in range(len(classes))} | known
    labels = [dataset.labels(i) for i in range(len(dataset))]
    truths = {one["name"]: one["label"] for one in labels if "label" in one}
    best: dict[str, dict[int, int]] = {}  # name -> rank -> label
    chances: dict[str, float | None] = {}
    called: set[str] = set()
    for line, row, rank in _rows(file):
        name, where = row["name"], f"{file}, line {line}"
        if name not in truths:
            continue
        called |= {row["prediction"], row.get("truth", "")}
        ranks = best.setdefault(name, {})
        if rank in ranks:
            raise DataError(f"{where}: a second row for {name}; each image has one")
        truth = row.get("truth") or classes[truths[name]]
        true, label = (_label(one, numbers, classes, where) for one in (truth, row["prediction"]))
        if true != truths[name]:
            ours = classes[truths[name]]
            raise DataError(
                f"{where}: the truth of {name} is {truth} here, but {ours} in the data set; are these its classes?"
            )
        if label in ranks.values():
            raise DataError(f"{where}: {row['prediction']} is predicted twice for {name}")
        ranks[rank] = label
        if rank == 1:
            chances[name] = _probability(row.get("probability", ""), where)
    if missing := [name for name in truths if name not in chances]:
        raise MissingDataError(
            f"{file}: {len(missing)} of {len(truths)} images have no prediction: {first_names(missing)}"
        )
    _tell_equal_numbers(file, classes, called)
    return _scored(best, chances, truths, len(classes))


def _label(called: str, numbers: Mapping[str, int], classes: Sequence[str], where: str) -> int:
    if called in numbers:
        return numbers[called]
    if called.strip().isdecimal():
        same = next((name for name in classes if name.isdecimal() and int(name) == int(called)), None)
        hint = f"a spreadsheet may have made it of {same!r}" if same else f"write 'class {called}' if it counts from 0"
        raise DataError(f"{where}: no class is called {called!r}; {hint}")
    near = difflib.get_close_matches(called, classes, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "if the network has it, list the network's classes in classes.txt"
    raise DataError(f"{where}: no class is called {called!r}; {hint}")


def _scored(
    best: dict[str, dict[int, int]], chances: dict[str, float | None], truths: dict[str, int], classes: int
) -> ClassificationScores:
    """Return the scores of the best classes, down to the last rank that all images have.

    `chances` holds the probability of the best class: None if unknown, NaN if the logits were not finite.
    """
    depth = next(
        rank for rank in range(BEST, 0, -1) if all(best[name].keys() >= {*range(1, rank + 1)} for name in truths)
    )
    predictions = np.array([[best[name][rank] for rank in range(1, depth + 1)] for name in truths])
    probabilities = [chances[name] for name in truths]
    predictions[[chance is not None and math.isnan(chance) for chance in probabilities]] = classes
    scores = ClassificationScores(classes)
    scores.update_predictions(predictions, np.array([*truths.values()]), np.array(probabilities, dtype=np.float64))
    return scores


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str], int]]:
    """Yield line number, cells by column, and rank for each of the up to five predictions in a line."""
    try:
        text = normalize("NFC", read_text(file))
    except FileNotFoundError as error:
        raise MissingDataError(f"{file}: there is no such table; --save-predictions writes one") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = next(rows, [])
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise DataError(f"{file}: two columns are called {twice[0]!r}; expected each once")
        if not {"name", "prediction"} <= {*columns}:
            found = ", ".join(columns) or "none"
            raise DataError(f"{file}: the columns are {found}; expected at least name and prediction")
        _check_columns(file, columns)
        for row in rows:
            if row and len(row) != len(columns):
                raise DataError(f"{file}, line {rows.line_num}: {len(row)} cells, expected {len(columns)}")
            if not row:
                continue
            cells = dict(zip(columns, row, strict=True))
            yield rows.line_num, cells, 1
            for rank in range(2, BEST + 1):
                if label := cells.get(f"prediction_{rank}"):
                    yield rows.line_num, cells | {"prediction": label}, rank
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: not a row of a table: {error}") from error


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    """Warn about columns that are not read. Raises DataError if one of them looks like a misspelled one."""
    unread = [column for column in columns if column not in COLUMNS]
    if misspelled := [column for column in unread if _near(column)]:
        near = _near(misspelled[0])
        raise DataError(f"{file}: a column {misspelled[0]!r}, which is not read; did you mean {near!r}?")
    if unread:
        _LOG.warning("%s: the columns %s are not read", file, ", ".join(map(repr, unread)))


def _tell_equal_numbers(file: Path, classes: Sequence[str], called: Collection[str]) -> None:
    """Warn of classes that a spreadsheet would make one, as 1 of 01, unless the table has one that it would change."""
    numbers: dict[float, list[str]] = {}
    for name in classes:
        if re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", name.strip(), re.ASCII | re.IGNORECASE):
            numbers.setdefault(float(name), []).append(name)
    for number, names in numbers.items():
        plain = f"{number:g}"
        if len(names) > 1 and plain in called and not any(name != plain and name in called for name in names):
            _LOG.warning(
                "%s: the classes %s are equal as numbers, and the table has only %s; if a spreadsheet stored it, it is "
                "wrong", file, ", ".join(map(repr, names)), plain,
            )  # fmt: skip


def _near(column: str) -> str | None:
    """Return the column that one looks like, such as prediction_2 for prediction-2, or None."""
    return next(iter(difflib.get_close_matches(column.strip().casefold(), COLUMNS, n=1, cutoff=0.8)), None)


def _probability(text: str, where: str) -> float | None:
    """Return the number in a cell, which may be NaN; None if the cell is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if value < 0 or value > 1:
        raise DataError(f"{where}: the probability is {text!r}, expected a number in [0, 1]")
    return value


def report_classes(
    folder: Path, name: str, data: Examples, labels: ClassificationScores, predictions: Sequence[LabelPrediction]
) -> None:
    """Write a table with the accuracy of each class, and a figure of the most confused pairs of classes."""
    from mtsp.figures.panels import to_image

    names = getattr(data, "classes", ()) or [f"class {label}" for label in range(labels.classes)]
    counts = labels.confusion()[:, :-1]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}-classes.md", class_table(class_rows(counts, names)).encode())
    if pairs := confused_pairs(counts):
        mistakes: dict[tuple[int, int], list[int]] = {}
        for one in predictions:
            mistakes.setdefault((one.truth or 0, one.label), []).append(one.position)
        figure = folder / f"{name}-pairs.png"
        draw_pairs(figure, pairs, names, mistakes, lambda position: to_image(data[position]["frame"]))
