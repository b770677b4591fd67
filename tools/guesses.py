"""What a network says of labeled pictures, one guess each: a row in `labels.csv`, and the report of the classes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsp.checkpoint import write_atomically
from mtsp.confusions import class_rows, class_table, confused_pairs, draw_pairs
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
