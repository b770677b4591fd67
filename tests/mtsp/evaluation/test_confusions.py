"""The most confused pairs, the table of classes, and the figure of them."""

from pathlib import Path

import numpy as np
import pytest

from data.files.images import read_image
from mtsp.evaluation.confusions import (
    Confusion,
    class_rows,
    class_table,
    confused_pairs,
    draw_pairs,
    worst_confusions,
)

NAMES = ("auk", "bunting", "cardinal", "emu")
COUNTS = np.array(
    [  # called auk, bunting, cardinal, emu
        [7, 2, 1, 0],
        [3, 5, 0, 0],
        [1, 0, 1, 0],
        [0, 0, 0, 0],
    ]
)


def test_pairs_count_mistakes_in_both_directions() -> None:
    # auk and bunting: 2 + 3 of 10 + 8 examples; auk and cardinal: 1 + 1 of 10 + 2
    assert confused_pairs(COUNTS) == [Confusion(0, 1, 5, 5 / 18), Confusion(0, 2, 2, 2 / 12)]
    assert confused_pairs(COUNTS, limit=1) == [Confusion(0, 1, 5, 5 / 18)]
    assert confused_pairs(np.diag([3, 4])) == []


def test_a_direction_has_its_own_mistakes_and_what_is_no_class_too() -> None:
    counts = np.concatenate([COUNTS, [[0], [0], [1], [0]]], axis=1)  # a cardinal is called nothing
    found = worst_confusions(counts)
    assert found[:2] == [Confusion(1, 0, 3, 3 / 8), Confusion(0, 1, 2, 2 / 10)]
    assert found[2:] == [Confusion(2, 0, 1, 1 / 3), Confusion(2, 4, 1, 1 / 3), Confusion(0, 2, 1, 1 / 10)]
    with pytest.raises(ValueError, match="confusion matrix of 4 classes must be 4x4, got 4x5"):
        confused_pairs(counts)


def test_the_worst_class_comes_first_and_one_without_examples_last() -> None:
    rows = class_rows(COUNTS, NAMES)
    assert [row.name for row in rows] == ["cardinal", "bunting", "auk", "emu"]
    cardinal, bunting, auk, emu = rows
    assert (cardinal.accuracy, cardinal.precision, cardinal.taken_for) == (1 / 2, 1 / 2, "auk")
    assert (bunting.examples, bunting.accuracy, bunting.precision) == (8, 5 / 8, 5 / 7)
    assert (auk.accuracy, auk.precision, auk.taken_for) == (7 / 10, 7 / 11, "bunting")
    assert emu == ("emu", 0, None, None, None)


def test_the_table_says_nothing_where_nothing_is_known() -> None:
    lines = class_table(class_rows(COUNTS, NAMES)).splitlines()
    assert lines[2] == "| cardinal | 2 | 50.0 | 50.0 | auk |"
    assert lines[5] == "| emu | 0 | - | - | - |"


def test_the_figure_shows_the_mistaken_examples_only(tmp_path: Path) -> None:
    mistakes = {(0, 0): [0], (0, 1): [1], (1, 1): [2], (1, 0): [3]}
    shown: list[int] = []

    def figure(index: int) -> np.ndarray:
        shown.append(index)
        return np.full((8, 8, 3), 50 * index, np.uint8)

    draw_pairs(tmp_path / "pairs.png", [Confusion(0, 1, 2, 0.5)], NAMES, mistakes, figure)
    assert shown == [1, 3]
    image = read_image(tmp_path / "pairs.png")
    assert image.shape[1] > image.shape[0] > 100
    assert {50, 150} <= set(image[..., 0].reshape(-1).tolist())  # both examples, as they are


def test_a_direction_without_mistakes_leaves_its_cells_to_the_other(tmp_path: Path) -> None:
    shown: list[int] = []
    pairs = [Confusion(0, 1, 8, 0.5), Confusion(2, 3, 0, 0.0)]

    def figure(index: int) -> np.ndarray:
        shown.append(index)
        return np.zeros((8, 8, 3), np.uint8)

    draw_pairs(tmp_path / "pairs.png", pairs, NAMES, {(0, 1): range(7), (1, 0): [9]}, figure)
    assert shown == [0, 1, 2, 3, 4, 9]  # three in each direction would leave two cells empty
    width, height = read_image(tmp_path / "pairs.png").shape[1::-1]
    assert width > 4 * height  # one row of six: the second pair has no example


def test_what_cannot_be_drawn_or_counted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_pairs(tmp_path / "pairs.png", [], NAMES, {}, lambda index: np.zeros((1, 1, 3)))
    with pytest.raises(ValueError, match="confusion matrix of 3 classes must be 3x3, got 4x4"):
        class_rows(COUNTS, NAMES[:3])
