"""Predicted classes of labeled images: a row for each image in `labels.csv`, and a report on each class.

The columns are `name`, `truth` (if it is known), `prediction`, `probability` (of the prediction, six digits), and
`prediction_2` to `prediction_5`, the next best classes. Classes are named as the data set names them, or numbered from
0 ("class 3"; a bare "3" may be counted from 0 or 1 and is refused). Scoring needs `name` and `prediction` only.
"""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.types import DataError, MissingDataError, SampleDataset
from mtsp.evaluation.confusions import class_rows, class_table, confused_pairs, draw_pairs
from mtsp.files.atomic import write_atomically
from mtsp.metrics import ClassificationScores
from mtsp.text import first_names
from mtsp.types import Examples

if TYPE_CHECKING:
    from torch import Tensor

BEST = 5
"""How many classes of an image a table has."""


class LabelPrediction(NamedTuple):
    """Predicted classes of one image."""

    position: int
    name: str
    truth: int | None
    label: int
    probability: float
    next_best: tuple[int, ...] = ()
    """The classes after `label`, at most four."""


def label_prediction(position: int, name: str, truth: int | None, logits: "Tensor") -> LabelPrediction:
    """Return the best classes by K logits of an image; of equal logits the lower class comes first."""
    label, *others = logits.argsort(descending=True, stable=True)[:BEST].tolist()
    return LabelPrediction(position, name, truth, label, float(logits.softmax(0)[label]), tuple(others))


def save_predictions(file: Path, classes: Sequence[str], predictions: Sequence[LabelPrediction]) -> None:
    """Write a row for each image.

    Args:
        file: the CSV file; its folder is made if need be.
        classes: names of the classes; without, they are numbered.
        predictions: at least one; all with a true class, or none.
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
    """Return the scores of the predictions in a table; rows of images that are not in `dataset` are skipped.

    NaN are the likelihood, which needs all classes; top-5 accuracy if one of an image's five best classes is missing;
    and the calibration errors if a probability is missing. A prediction with the probability "nan", from logits that
    were not finite, counts as wrong.

    Args:
        file: the table, or the folder that has it as labels.csv.
        dataset: labeled images.

    Raises:
        MissingDataError: no such table, or images without a row, the first ten and their number.
        DataError: a row that cannot be read, a second one for an image, a class that the data set does not have, or a
            truth that differs from the data set's.
    """
    file = file / "labels.csv" if file.is_dir() else file
    classes: tuple[str, ...] = getattr(dataset, "classes", ())
    known = {name: label for label, name in enumerate(classes)}
    numbers = {f"class {label}": label for label in range(len(classes))} | known
    labels = [dataset.labels(i) for i in range(len(dataset))]
    truths = {one["name"]: one["label"] for one in labels if "label" in one}
    best: dict[str, dict[int, int]] = {}  # name -> rank -> label
    chances: dict[str, float | None] = {}
    for line, row, rank in _rows(file):
        name, where = row["name"], f"{file}, line {line}"
        if name not in truths:
            continue
        ranks = best.setdefault(name, {})
        if rank in ranks:
            raise DataError(f"{where}: a second row for {name}; each image has one")
        truth = row.get("truth") or classes[truths[name]]
        true, label = (_label(called, numbers, classes, where) for called in (truth, row["prediction"]))
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
    return _scored(best, chances, truths, len(classes))


def _label(called: str, numbers: Mapping[str, int], classes: Sequence[str], where: str) -> int:
    if called in numbers:
        return numbers[called]
    if called.strip().isdecimal():
        same = next((name for name in classes if name.isdecimal() and int(name) == int(called)), None)
        hint = f"a spreadsheet may have made it of {same!r}" if same else f"write 'class {called}' if it counts from 0"
        raise DataError(f"{where}: no class is called {called!r}; {hint}")
    near = difflib.get_close_matches(called, classes, n=1, cutoff=0.5)
    raise DataError(f"{where}: no class is called {called!r}" + (f"; did you mean {near[0]}?" if near else ""))


def _scored(
    best: dict[str, dict[int, int]], chances: dict[str, float | None], truths: dict[str, int], classes: int
) -> ClassificationScores:
    """Return the scores of each image's classes by rank, down to the last rank that all have.

    The best one's probability is None where it is unknown, and NaN where the logits were not finite.
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
    """Yield the line number, the cells by column and the rank of each `prediction`; a line has up to five."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingDataError(f"{file}: there is no such table; --save-predictions writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the table cannot be read: {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = next(rows, [])
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise DataError(f"{file}: two columns are called {twice[0]!r}; expected each once")
        if not {"name", "prediction"} <= {*columns}:
            found = ", ".join(columns) or "none"
            raise DataError(f"{file}: the columns are {found}; expected at least name and prediction")
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


def _probability(text: str, where: str) -> float | None:
    """Return the number in a cell, which may be NaN; None if it is empty."""
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
    """Write a table of each class's accuracy, and a figure of the pairs that are confused most."""
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
