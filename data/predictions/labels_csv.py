"""What a network says of labeled images: a row for each in `labels.csv`, and the report of the classes.

The table has the columns `name`, `truth`, `guess`, `probability` (of the guess, six digits), and `guess_2` to
`guess_5`, the next best classes; classes are named as the data set names them, or numbered from 0. To be scored it
needs `name` and `guess` only. The table that tools/predict.py writes, a row for each of an image's best classes, is
scored, too.
"""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from data.types import DataError, MissingDataError, SampleDataset
from mtsp.evaluation.confusions import class_rows, class_table, confused_pairs, draw_pairs
from mtsp.files.atomic import write_atomically
from mtsp.metrics import ClassificationScores
from mtsp.text import first_names
from mtsp.types import Examples


class Guess(NamedTuple):
    """What the network says of one labeled image."""

    place: int
    name: str
    truth: int
    label: int
    probability: float
    next_best: tuple[int, ...] = ()
    """The classes after `label`, as far as a table has them."""


BEST = 5
"""How many classes of an image a table has."""
_RANKS = [str(rank) for rank in range(1, BEST + 1)]


def guess_of(place: int, name: str, truth: int, logits: Tensor) -> Guess:
    """Return what K logits say of an image; of equal logits the lower class comes first."""
    label, *others = logits.argsort(descending=True, stable=True)[:BEST].tolist()
    return Guess(place, name, truth, label, float(logits.softmax(0)[label]), tuple(others))


def save_guesses(folder: Path, data: Examples, guesses: Sequence[Guess]) -> None:
    """Write a row for each image to labels.csv."""
    names = getattr(data, "classes", ())
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    others = len(guesses[0].next_best) if guesses else 0
    rows.writerow(["name", "truth", "guess", "probability", *(f"guess_{rank}" for rank in range(2, others + 2))])
    for guess in guesses:
        labels = (guess.truth, guess.label, *guess.next_best)
        truth, best, *rest = (names[label] if names else label for label in labels)
        rows.writerow([guess.name, truth, best, f"{guess.probability:.6f}", *rest])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "labels.csv", text.getvalue().encode())


def score_guesses(file: Path, dataset: SampleDataset) -> ClassificationScores:
    """Return what the guesses in a table are worth; rows of images that are not in `dataset` are passed over.

    The likelihood is NaN, for a table does not tell it; so is top-5 accuracy where one of an image's five best classes
    is missing, and so are the calibration errors where a probability is missing. A guess whose probability is "nan", as
    a network that is not finite has it, is counted as wrong.

    Args:
        file: the table, or the folder that has it as labels.csv.
        dataset: of labeled images.

    Raises:
        MissingDataError: there is no such table, or images without a row, the first ten and their number.
        DataError: a row that cannot be read, a second one for an image, a class that the data set does not have, or a
            truth that is not its own.
    """
    file = file / "labels.csv" if file.is_dir() else file
    classes: tuple[str, ...] = getattr(dataset, "classes", ())
    known = {name: label for label, name in enumerate(classes)}
    numbers = {str(label): label for label in range(len(classes))} | known  # a class may be called "3"
    labels = [dataset.labels(i) for i in range(len(dataset))]
    truths = {one["name"]: one["label"] for one in labels if "label" in one}
    best: dict[str, dict[int, int]] = {}  # name -> rank -> label
    chances: dict[str, float | None] = {}
    for line, row, rank in _rows(file, classes):
        name, where = row["name"], f"{file}, line {line}"
        if name not in truths:
            continue
        ranks = best.setdefault(name, {})
        if rank in ranks:
            which = "" if rank == 1 else f" of rank {rank}"
            raise DataError(f"{where}: a second guess{which} for {name}; each image has one")
        truth = row.get("truth") or classes[truths[name]]
        true, label = (_label(called, numbers, classes, where) for called in (truth, row["guess"]))
        if true != truths[name]:
            ours = classes[truths[name]]
            raise DataError(
                f"{where}: {name} is said to be {truth}, but is {ours} in the data set; are these its classes?"
            )
        if label in ranks.values():
            raise DataError(f"{where}: {row['guess']} is guessed twice for {name}")
        ranks[rank] = label
        if rank == 1:
            chances[name] = _probability(row.get("probability", ""), where)
    if missing := [name for name in truths if name not in chances]:
        raise MissingDataError(f"{file}: {len(missing)} of {len(truths)} images have no guess: {first_names(missing)}")
    return _scored(best, chances, truths, len(classes))


def _label(called: str, numbers: Mapping[str, int], classes: Sequence[str], where: str) -> int:
    """Return the number of a class that is called so in the row `where`."""
    if called in numbers:
        return numbers[called]
    near = difflib.get_close_matches(called, classes, n=1, cutoff=0.5)
    raise DataError(f"{where}: no class is called {called!r}" + (f"; did you mean {near[0]}?" if near else ""))


def _scored(
    best: dict[str, dict[int, int]], chances: dict[str, float | None], truths: dict[str, int], classes: int
) -> ClassificationScores:
    """Return the scores of each image's classes by rank, as deep as all have them, and probability of the best.

    A probability that is None is not known, and NaN is that of a lost network.
    """
    depth = next(
        rank for rank in range(BEST, 0, -1) if all(best[name].keys() >= {*range(1, rank + 1)} for name in truths)
    )
    guesses = np.array([[best[name][rank] for rank in range(1, depth + 1)] for name in truths])
    guesses[[chance is not None and math.isnan(chance) for chance in (chances[name] for name in truths)]] = classes
    known = [math.nan if (chance := chances[name]) is None else chance for name in truths]
    scores = ClassificationScores(classes)
    scores.update_guesses(guesses, np.array([*truths.values()]), np.array(known))
    return scores


def _rows(file: Path, classes: Sequence[str]) -> Iterator[tuple[int, dict[str, str], int]]:
    """Yield the number of each line, its cells by column, and the rank of its `guess`; a line may have several.

    In a table of ranks, `label` is the number of a class, for those whose names were not known when it was written.
    """
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
            if not row:
                continue
            where = f"{file}, line {rows.line_num}"
            if ranked and not cells["rank"].isdecimal():
                raise DataError(f"{where}: the rank is {cells['rank']!r}, expected 1 for the best class, then 2, ...")
            if ranked and cells["rank"] in _RANKS:
                guess = cells["class"] or _numbered(cells["label"], classes, where)
                yield rows.line_num, cells | {"guess": guess}, int(cells["rank"])
            if not ranked:
                yield rows.line_num, cells, 1
                for rank in _RANKS[1:]:
                    if guess := cells.get(f"guess_{rank}"):
                        yield rows.line_num, cells | {"guess": guess}, int(rank)
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: not a row of a table: {error}") from error


def _numbered(number: str, classes: Sequence[str], where: str) -> str:
    """Return the class of a number."""
    if number.isdecimal() and int(number) < len(classes):
        return classes[int(number)]
    raise DataError(f"{where}: no class has the number {number!r}; the data set has {len(classes)}")


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
    """Write how each class fares, and figures of the pairs that are confused most."""
    names = getattr(data, "classes", ()) or [f"class {label}" for label in range(labels.classes)]
    counts = labels.confusion()[:, :-1]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}-classes.md", class_table(class_rows(counts, names)).encode())
    if pairs := confused_pairs(counts):
        true, predicted = [guess.truth for guess in guesses], [guess.label for guess in guesses]
        figures = folder / f"{name}-pairs.png"
        draw_pairs(figures, pairs, names, true, predicted, lambda i: _image(data, guesses[i].place))


def _image(data: Examples, index: int) -> np.ndarray:
    return (data[index]["frame"].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
