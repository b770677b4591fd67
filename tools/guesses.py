"""What a network says of labeled pictures, one guess each: a row in `labels.csv`, and the report of the classes.

The table has the columns `name`, `truth`, `guess` and `probability` (of the guess, six digits); classes are named as
the data set names them, or numbered from 0. To be scored it needs `name` and `guess` only. The table that
tools/predict.py writes, a row for each of a picture's best classes, is scored by its rows of rank 1.
"""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import DataError, MissingDataError, RawDataset
from mtsp.checkpoint import write_atomically
from mtsp.confusions import class_rows, class_table, confused_pairs, draw_pairs
from mtsp.messages import first_names
from mtsp.metrics import ClassificationScores
from mtsp.types import Examples


class Guess(NamedTuple):
    """What the network says of one labeled picture."""

    place: int
    name: str
    truth: int
    label: int
    probability: float


def save_guesses(folder: Path, data: Examples, guesses: Sequence[Guess]) -> None:
    """Write a row for each picture to labels.csv."""
    names = getattr(data, "classes", ())
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", "truth", "guess", "probability"])
    for guess in guesses:
        classes = (names[label] if names else label for label in (guess.truth, guess.label))
        rows.writerow([guess.name, *classes, f"{guess.probability:.6f}"])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "labels.csv", text.getvalue().encode())


def score_guesses(file: Path, dataset: RawDataset) -> ClassificationScores:
    """Return what the guesses in a table are worth; rows of pictures that are not in `dataset` are passed over.

    Top-5 accuracy and likelihood are NaN, for a table does not tell them, and the calibration errors if a probability
    is missing. A guess whose probability is "nan", as a network that is not finite has it, is counted as wrong.

    Args:
        file: the table, or the folder that has it as labels.csv.
        dataset: of labeled pictures.

    Raises:
        MissingDataError: there is no such table, or pictures without a row, the first ten and their number.
        DataError: a row that cannot be read, a second one for a picture, a class that the data set does not have, or a
            truth that is not its own.
    """
    file = file / "labels.csv" if file.is_dir() else file
    classes: tuple[str, ...] = getattr(dataset, "classes", ())
    known = {name: label for label, name in enumerate(classes)}
    numbers = {str(label): label for label in range(len(classes))} | known  # a class may be called "3"
    labels = [dataset.labels(i) for i in range(len(dataset))]
    truths = {one["name"]: one["label"] for one in labels if "label" in one}
    found: dict[str, tuple[int, float | None]] = {}
    for line, row in _rows(file):
        name, where = row["name"], f"{file}, line {line}"
        if name not in truths:
            continue
        if name in found:
            raise DataError(f"{where}: a second guess for {name}; each picture has one")
        truth = row.get("truth") or classes[truths[name]]
        for called in (truth, row["guess"]):
            if called not in numbers:
                near = difflib.get_close_matches(called, classes, n=1, cutoff=0.5)
                raise DataError(
                    f"{where}: no class is called {called!r}" + (f"; did you mean {near[0]}?" if near else "")
                )
        if numbers[truth] != truths[name]:
            ours = classes[truths[name]]
            raise DataError(
                f"{where}: {name} is said to be {truth}, but is {ours} in the data set; are these its classes?"
            )
        found[name] = numbers[row["guess"]], _probability(row.get("probability", ""), where)
    if missing := [name for name in truths if name not in found]:
        raise MissingDataError(
            f"{file}: {len(missing)} of {len(truths)} pictures have no guess: {first_names(missing)}"
        )
    return _scored(found, truths, len(classes))


def _scored(found: dict[str, tuple[int, float | None]], truths: dict[str, int], classes: int) -> ClassificationScores:
    """Return the scores of each picture's class and probability; None is not known, NaN that of a lost network."""
    rows = [found[name] for name in truths]
    guesses = [classes if chance is not None and math.isnan(chance) else guess for guess, chance in rows]
    chances = [math.nan if chance is None else chance for _, chance in rows]
    scores = ClassificationScores(classes)
    scores.update_guesses(np.array(guesses), np.array([*truths.values()]), np.array(chances))
    return scores


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its cells by column."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingDataError(f"{file}: there is no such table of guesses; --save-predictions writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the table of guesses cannot be read: {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        columns = next(rows, [])
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise DataError(f"{file}: two columns are called {twice[0]!r}; expected each once")
        ranked = {"name", "rank", "label", "class"} <= {*columns}
        if not ranked and not {"name", "guess"} <= {*columns}:
            raise DataError(f"{file}: the columns are {', '.join(columns) or 'none'}; expected name and guess at least")
        for row in rows:
            if row and len(row) != len(columns):
                raise DataError(f"{file}, line {rows.line_num}: {len(row)} cells, expected {len(columns)}")
            cells = dict(zip(columns, row, strict=False))
            if ranked and row:
                cells["guess"] = cells["class"] or cells["label"]
            if row and (not ranked or cells["rank"] == "1"):
                yield rows.line_num, cells
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


def report_guesses(
    folder: Path, name: str, data: Examples, labels: ClassificationScores, guesses: Sequence[Guess]
) -> None:
    """Write how each class fares, and pictures of the pairs that are confused most."""
    names = getattr(data, "classes", ()) or [f"class {label}" for label in range(labels.classes)]
    counts = labels.confusion()[:, :-1]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}-classes.md", class_table(class_rows(counts, names)).encode())
    if pairs := confused_pairs(counts):
        true, predicted = [guess.truth for guess in guesses], [guess.label for guess in guesses]
        pictures = folder / f"{name}-pairs.png"
        draw_pairs(pictures, pairs, names, true, predicted, lambda i: _picture(data, guesses[i].place))


def _picture(data: Examples, index: int) -> np.ndarray:
    return (data[index]["frame"].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
