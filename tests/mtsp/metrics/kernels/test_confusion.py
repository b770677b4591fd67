"""Counts of classes in parts: where images are cut for threads, and which of them have a table of their own."""

import numpy as np
import pytest
import torch

from mtsp.metrics.kernels import confusion as kernels


def by_hand(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    table = np.zeros((classes, classes + 1), np.int64)
    for guess, label in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if label != ignore:
            table[label, guess if 0 <= guess < classes else classes] += 1
    return table


def tables_of(prediction: np.ndarray, truth: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The table of all images, and true, predicted and right pixels of each."""
    each = [by_hand(*pair, classes, None) for pair in zip(prediction, truth, strict=True)]
    margins = [(one.sum(axis=1), one[:, :classes].sum(axis=0), one.diagonal()) for one in each]
    return np.sum(each, axis=0), np.array(margins)


@pytest.mark.parametrize("images", [3, 9])
def test_parts_of_images_and_whole_images_as_parts_give_each_image_its_own_counts(
    monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    monkeypatch.setattr(kernels, "threads", lambda: 2)
    monkeypatch.setattr(kernels, "_PIXELS_A_THREAD", 100)
    prediction, truth = np.random.default_rng(0).integers(0, 5, (2, images, 11, 13))
    monkeypatch.setattr(kernels, "_PIXELS_A_CELL", 1)
    monkeypatch.setattr(kernels, "_CELLS_OF_ONE", 1 << 14)
    assert len(kernels._slabs(truth.shape, 42, few=True)) == {3: 2, 9: 5}[images]
    found = kernels.count_classes(prediction, truth, 5, None, scores=False)
    table, margins = tables_of(prediction, truth, 5)
    np.testing.assert_array_equal(found.table[:5], table)
    np.testing.assert_array_equal(found.images, margins)


def test_images_of_many_pixels_and_few_classes_have_a_table_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CELLS_OF_ONE", 1 << 14)
    monkeypatch.setattr(kernels, "_PIXELS_A_CELL", 16)
    for classes, side, cells in ((3, 24, 20), (100, 24, 0), (3, 8, 0)):  # 20 cells need 320 pixels: 576, 64
        assert kernels._lane_cells(np.zeros((2, side, side)), classes) == cells


def test_parts_are_whole_images_where_there_are_enough_or_else_of_each_image_as_many_as_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "threads", lambda: 2)
    monkeypatch.setattr(kernels, "_PIXELS_A_THREAD", 100)
    every, whole = slice(None), [(slice(None), slice(None), slice(None))]
    of_two = [(slice(start, start + 2), every, every) for start in (0, 2, 4, 6, 8)]
    assert kernels._slabs((9, 10, 10), 30, few=True) == of_two  # 8 parts, of 9 / 8 images
    assert kernels._slabs((3, 9, 10), 30, few=True) == [(every, slice(0, 5), every), (every, slice(5, 10), every)]
    assert kernels._slabs((3, 1, 90), 30, few=True) == [(every, every, slice(0, 45)), (every, every, slice(45, 90))]
    assert kernels._slabs((1, 10, 19), 30, few=True) == whole  # 190 pixels: of no use to a second thread
    assert kernels._slabs((9, 10, 10), 900, few=False) == whole  # nor is one to add 900 cells up afterwards
    assert kernels._slabs((9, 10, 10), 400, few=False) == [(slice(0, 5), every, every), (slice(5, 10), every, every)]
    monkeypatch.setattr(kernels, "_CELLS_AT_ONCE", 799)
    assert kernels._slabs((9, 10, 10), 400, few=False) == whole  # two tables would be too many


def test_tables_beyond_what_a_device_holds_are_counted_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CELLS_AT_ONCE", 2 * 5 * 4)  # two tables of three classes
    monkeypatch.setattr(kernels, "on_host", lambda array: False)
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 3, (2, 5, 4, 4))
    found = kernels.count_classes(torch.from_numpy(prediction), torch.from_numpy(truth), 3, None, scores=False)
    table, margins = tables_of(prediction, truth, 3)
    np.testing.assert_array_equal(found.table[:3], table)
    np.testing.assert_array_equal(found.images, margins)
