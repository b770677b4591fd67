"""Find the classes that a classifier confuses most, draw examples of them, and tabulate the accuracy of each class."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

Figures = Callable[[int], np.ndarray]
"""`figures(index)` returns the image of example `index`, HW3 uint8 RGB. Called only for examples that are shown."""


class Confusion(NamedTuple):
    """Mistakes between two classes, in one direction or in both."""

    truth: int
    taken_for: int
    mistakes: int
    """Number of mistakes, in one direction or the sum of both."""
    share: float
    """Mistakes as a fraction of the examples of the true class, or, for both directions, of both classes."""


class ClassRow(NamedTuple):
    """Accuracy and most frequent mistake of one class."""

    name: str
    examples: int
    accuracy: float | None
    """Fraction of the class's examples that are predicted correctly (recall); None without examples."""
    precision: float | None
    """Fraction of the predictions of this class that are correct; None without predictions."""
    taken_for: str | None
    """Wrong class that is predicted most often for the class's examples; None without mistakes."""


def confused_pairs(counts: np.ndarray, limit: int = 10) -> list[Confusion]:
    """Return the pairs of classes with the most mistakes in both directions, the worst pair first.

    Of pairs with equally many mistakes, the one with the larger fraction comes first, then that with lower class ids.

    Args:
        counts: confusion matrix, CC, with a row per true class and a column per predicted class.
        limit: largest number of pairs to return; pairs without mistakes are left out.

    Raises:
        ValueError: the matrix is not square.
    """
    counts = _square(counts)
    examples = counts.sum(1)
    return _most(np.triu(counts + counts.T, 1), examples[:, None] + examples, limit)


def worst_confusions(counts: np.ndarray, limit: int = 10) -> list[Confusion]:
    """Return the confusions with the most mistakes, each direction separately, ordered as in :func:`confused_pairs`.

    Args:
        counts: confusion matrix, CC, or with an additional last column for examples without a predicted class.
        limit: largest number of confusions to return.
    """
    mistakes = np.array(counts)
    examples = np.broadcast_to(mistakes.sum(1)[:, None], mistakes.shape)
    np.fill_diagonal(mistakes, 0)
    return _most(mistakes, examples, limit)


def _most(mistakes: np.ndarray, examples: np.ndarray, limit: int) -> list[Confusion]:
    found = [
        Confusion(truth, taken, int(mistakes[truth, taken]), float(mistakes[truth, taken] / examples[truth, taken]))
        for truth, taken in np.argwhere(mistakes).tolist()
    ]
    return sorted(found, key=lambda one: (-one.mistakes, -one.share, one.truth, one.taken_for))[:limit]


def class_rows(counts: np.ndarray, names: Sequence[str]) -> list[ClassRow]:
    """Return a row for each class, sorted from lowest to highest accuracy, with classes without examples last.

    Args:
        counts: confusion matrix, CC, with a row per true class and a column per predicted class.
        names: names of the C classes.

    Raises:
        ValueError: the number of names does not match the matrix.
    """
    counts = _square(counts, names)
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    rows = []
    for label, name in enumerate(names):
        examples, called, right = counts[label].sum(), counts[:, label].sum(), counts[label, label]
        accuracy, precision = (float(right / total) if total else None for total in (examples, called))
        taken_for = names[int(wrong[label].argmax())] if wrong[label].any() else None
        rows.append(ClassRow(name, int(examples), accuracy, precision, taken_for))
    return sorted(rows, key=lambda row: (row.accuracy is None, row.accuracy or 0.0, row.name))


def class_table(rows: Sequence[ClassRow]) -> str:
    """Return the rows as a Markdown table, with accuracy and precision in percent."""
    lines = ["| class | examples | accuracy | precision | most often taken for |", "|---|---:|---:|---:|---|"]
    for row in rows:
        shares = (f"{100 * share:.1f}" if share is not None else "-" for share in (row.accuracy, row.precision))
        name, taken_for = (text.replace("|", "\\|") for text in (row.name, row.taken_for or "-"))
        lines.append(f"| {name} | {row.examples} | {' | '.join(shares)} | {taken_for} |")
    return "\n".join(lines) + "\n"


def draw_pairs(
    path: Path,
    pairs: Sequence[Confusion],
    names: Sequence[str],
    mistakes: Mapping[tuple[int, int], Sequence[int]],
    figures: Figures,
    each: int = 3,
) -> None:
    """Write a figure with a row for each pair of classes, showing misclassified examples of both directions.

    Where one direction has fewer than `each`, the other has more, so that cells are empty only where mistakes are few.

    Args:
        path: file to write; the suffix determines the format.
        pairs: result of :func:`confused_pairs`; at least one pair.
        names: class names.
        mistakes: indices of misclassified examples, by (true class, predicted class).
        figures: function that returns the image of an example.
        each: number of examples to show in each direction.

    Raises:
        ValueError: `pairs` is empty, or there is no example of any of them.
    """
    rows: list[list[tuple[str, int]]] = []
    for one, other, *_ in pairs:
        both = [(pair, mistakes.get(pair, ())) for pair in ((one, other), (other, one))]
        sizes = [max(each, 2 * each - len(found)) for _, found in reversed(both)]
        rows.append(
            [
                ("" if number else f"{names[true]}\ncalled {names[called]}: {len(found)}", index)
                for ((true, called), found), size in zip(both, sizes, strict=True)
                for number, index in enumerate(found[:size])
            ]
        )
    if not (rows := [row for row in rows if row]):
        raise ValueError("there are no confused pairs: nothing to draw")
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(max(3.0, 2.2 * columns), 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for places, row in zip(axes, rows, strict=True):
        for place in places:
            place.set_axis_off()
        for place, (title, index) in zip(places, row, strict=False):
            place.imshow(figures(index))
            place.set_title(title, fontsize=8, loc="left")
    figure.savefig(path, dpi=110)


def _square(counts: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    counts = np.asarray(counts)
    wanted = counts.shape[0] if names is None else len(names)
    if counts.shape != (wanted, wanted):
        got = "x".join(map(str, counts.shape))
        raise ValueError(f"the confusion matrix of {wanted} classes must be {wanted}x{wanted}, got {got}")
    return counts
