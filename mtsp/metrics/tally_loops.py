"""The compiled loops that count classes: of labels, of scores whose pixels are neighbors in memory, and of any others.

They work on blocks of pixels that stay in the first-level cache: cells of the table as vector code, then the counting,
in tables that a whole image is counted in before they are added to the table of all images and to its own margins;
where such a table would have too many cells, at once in the latter. They make no view of an array: numba would count
the references to it.

Where the pixels of a plane are neighbors, the block's best classes come first, four planes at a time, so that every
score is read once and no image of labels exists. Otherwise each pixel's best class is found among its own scores, which
a tensor in the order channels_last has side by side.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mtsp.metrics.native import compiled

BLOCK = 2048
"""Pixels that are counted at a time: their cells, and their best classes, stay in the first-level cache."""

LANES = 4
"""Tables counted in turn: neighbors have the same label, and one counter would wait for itself."""

Special = tuple[Any, Any] | None
"""Of scores given as the bits of floats: infinity's bits, and a number that stands for every NaN: all but the sign."""


@functools.cache
def label_kernel() -> Callable[..., Any] | None:
    """Return :func:`_count_labels` as machine code."""
    return compiled(_count_labels, calls=(_add, _cell, _tally, _empty, _tally_many))


@functools.cache
def plane_kernel() -> Callable[..., Any] | None:
    """Return :func:`_count_planes` as machine code."""
    return compiled(_count_planes, calls=(_add, _cell, _tally, _empty, _tally_many, _ordered, _better))


@functools.cache
def pixel_kernel() -> Callable[..., Any] | None:
    """Return :func:`_count_pixels` as machine code."""
    return compiled(_count_pixels, calls=(_add, _cell, _tally, _empty, _tally_many, _ordered, _highest))


def _count_labels(  # pragma: no cover, runs as machine code
    prediction: np.ndarray,
    steps: tuple[int, int],
    truth: np.ndarray,
    truth_steps: tuple[int, int],
    ignore: Any,
    lanes: np.ndarray,
    table: np.ndarray,
    margins: np.ndarray,
    shape: tuple[int, int, int],
) -> None:
    """Add BHW labels, given as memory and steps, to the tables of their images.

    Labels of 64 bits are counted as they are read, which leaves no time without a read from memory.
    """
    images, height, width = shape
    wide = prediction.itemsize == 8 and truth.itemsize == 8
    block, cells = width if wide else BLOCK, np.empty(0 if wide else BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            for start in range(0, width, block):
                count = min(block, width - start)
                ours, theirs = image * steps[0] + y * steps[1], image * truth_steps[0] + y * truth_steps[1]
                _add(
                    prediction, ours + start, truth, theirs + start, count, ignore, cells, lanes, table, margins, image
                )
        _empty(lanes, table, margins[image])


def _count_planes(  # pragma: no cover, runs as machine code
    scores: np.ndarray,
    steps: tuple[int, int, int, int],
    truth: np.ndarray,
    truth_steps: tuple[int, int],
    ignore: Any,
    special: Special,
    best: np.ndarray,
    guess: np.ndarray,
    lanes: np.ndarray,
    table: np.ndarray,
    margins: np.ndarray,
    shape: tuple[int, int, int],
) -> None:
    """Add BKHW scores, of which the pixels of a row are neighbors, and BHW labels, both given as memory and steps.

    Four planes at a time. The last ones of a number of classes that four does not divide are compared once more, which
    changes nothing.
    """
    images, height, width = shape
    classes = table.shape[1] - 1
    name = guess.dtype.type  # no wider than need be: in 64 bits, classes would fill twice the vectors of their scores
    cells = np.empty(BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            for start in range(0, width, BLOCK):
                count = min(BLOCK, width - start)
                place, pixels = image * steps[0] + y * steps[2] + start, np.uint64(count)
                for k in range(0, classes, 4):
                    k1, k2, k3 = min(k + 1, classes - 1), min(k + 2, classes - 1), min(k + 3, classes - 1)
                    plane, plane1 = np.uint64(place + k * steps[1]), np.uint64(place + k1 * steps[1])
                    plane2, plane3 = np.uint64(place + k2 * steps[1]), np.uint64(place + k3 * steps[1])
                    if k == 0:
                        for x in range(pixels):
                            best[x] = _ordered(scores[plane + x], special)
                            guess[x] = 0
                    for x in range(pixels):
                        held = best[x], guess[x]
                        held = _better(held, _ordered(scores[plane + x], special), name(k))
                        held = _better(held, _ordered(scores[plane1 + x], special), name(k1))
                        held = _better(held, _ordered(scores[plane2 + x], special), name(k2))
                        held = _better(held, _ordered(scores[plane3 + x], special), name(k3))
                        best[x], guess[x] = held
                for x in range(pixels):
                    lost = (best[x] != best[x]) if special is None else (best[x] == special[1])
                    guess[x] = classes if lost else guess[x]
                theirs = image * truth_steps[0] + y * truth_steps[1] + start
                _add(guess, 0, truth, theirs, count, ignore, cells, lanes, table, margins, image)
        _empty(lanes, table, margins[image])


def _count_pixels(  # pragma: no cover, runs as machine code
    scores: np.ndarray,
    steps: tuple[int, int, int, int],
    truth: np.ndarray,
    truth_steps: tuple[int, int],
    ignore: Any,
    special: Special,
    pixel: np.ndarray,
    frozen_pixel: np.ndarray,
    guess: np.ndarray,
    lanes: np.ndarray,
    table: np.ndarray,
    margins: np.ndarray,
    shape: tuple[int, int, int],
) -> None:
    """Add BKHW scores of any steps, whole numbers or bits of floats, and BHW labels, both given as memory and steps.

    Where the classes of a pixel are not neighbors, they are first copied to `pixel`; `frozen_pixel` is the same memory,
    read-only, as `scores` is.
    """
    images, height, width = shape
    classes = table.shape[1] - 1
    cells = np.empty(BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            for start in range(0, width, BLOCK):
                count = min(BLOCK, width - start)
                for x in range(count):
                    place = image * steps[0] + y * steps[2] + (start + x) * steps[3]
                    if steps[1] == 1:
                        row = scores[place : place + classes]
                    else:
                        for k in range(classes):
                            pixel[k] = scores[place + k * steps[1]]
                        row = frozen_pixel
                    guess[x] = _highest(row, special)
                theirs = image * truth_steps[0] + y * truth_steps[1] + start
                _add(guess, 0, truth, theirs, count, ignore, cells, lanes, table, margins, image)
        _empty(lanes, table, margins[image])


def _highest(row: np.ndarray, special: Special) -> Any:  # pragma: no cover, runs as machine code
    """Return the first of the highest scores of a pixel, or how many there are if one is NaN.

    Whole numbers, whose greatest a vector finds lane by lane; that of floats depends on the order where NaN is.
    """
    classes = np.int32(row.size)
    top = _ordered(row[0], special)
    for k in range(np.uint64(row.size)):
        score = _ordered(row[k], special)
        top = score if score > top else top
    first = classes
    for k in range(np.uint64(row.size)):
        here = np.int32(k) if _ordered(row[k], special) == top else classes
        first = here if here < first else first
    if special is not None:
        first = classes if top == special[1] else first
    return first


def _ordered(score: Any, special: Special) -> Any:  # pragma: no cover, runs as machine code
    """Return a number that compares as the score does; of the bits of any NaN, one that nothing is greater than."""
    if special is None:
        return score
    infinity, nan = special
    kind = type(nan)
    size = kind(score & nan)  # sign and magnitude: both zeros are 0
    signed = size if score >= 0 else kind(-size)
    return nan if size > infinity else signed


def _better(held: tuple[Any, Any], score: Any, k: Any) -> tuple[Any, Any]:  # pragma: no cover, runs as machine code
    """Return the best score and its class. A NaN takes the place of any score, and keeps it: nothing is greater."""
    take = (score > held[0]) | (score != score)
    return score if take else held[0], k if take else held[1]


def _add(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, ours: int, truth: np.ndarray, theirs: int, count: int, ignore: Any,
    cells: np.ndarray, lanes: np.ndarray, table: np.ndarray, margins: np.ndarray, image: int,
) -> None:  # fmt: skip
    """Count a block, which begins at `ours` and `theirs`: in the lanes, or of many classes in table and margins."""
    places = np.uint64(ours), np.uint64(theirs), np.uint64(count)
    if lanes.size > 0:
        _tally(prediction, truth, places, ignore, cells, lanes, table)
    else:
        _tally_many(prediction, truth, places, ignore, table, margins, image)


def _cell(  # pragma: no cover, runs as machine code
    label: Any, guess: Any, ignore: Any, classes: Any
) -> tuple[Any, Any]:
    """Return row and column, in words of the type of `ignore`, see :func:`_word`. Unsigned, a label below 0 is a large
    one.
    """
    word = type(ignore)
    label, other = word(label), word(classes + word(1))
    row = other if label == classes else min(label, other)
    return classes if label == ignore else row, min(word(guess), classes)


def _tally_many(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, places: tuple[Any, Any, Any], ignore: Any,
    table: np.ndarray, margins: np.ndarray, image: int,
) -> None:  # fmt: skip
    """Count a block into the table of all images and true, predicted, right pixels of one."""
    ours, theirs, count = places
    classes = type(ignore)(table.shape[1] - 1)
    for i in range(count):
        row, column = _cell(truth[theirs + i], prediction[ours + i], ignore, classes)
        table[row, column] += 1
        if row < classes:
            margins[image, 0, row] += 1
            margins[image, 1, column] += 1
            margins[image, 2, row] += row == column


def _tally(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, places: tuple[Any, Any, Any], ignore: Any,
    cells: np.ndarray, lanes: np.ndarray, table: np.ndarray,
) -> None:  # fmt: skip
    """Count a block in the lanes, by way of `cells` if there is room in it: computing these is vector code."""
    ours, theirs, count = places
    classes, width = type(ignore)(table.shape[1] - 1), np.uint32(table.shape[1])
    whole = count & ~np.uint64(LANES - 1)
    if cells.size == 0:
        for i in range(np.uint64(0), whole, np.uint64(LANES)):
            for lane in range(np.uint64(LANES)):
                place = i + lane
                row, column = _cell(truth[theirs + place], prediction[ours + place], ignore, classes)
                lanes[lane, np.uint64(row) * np.uint64(width) + np.uint64(column)] += np.uint32(1)
        for i in range(whole, count):
            row, column = _cell(truth[theirs + i], prediction[ours + i], ignore, classes)
            lanes[0, np.uint64(row) * np.uint64(width) + np.uint64(column)] += np.uint32(1)
        return
    for i in range(count):
        row, column = _cell(truth[theirs + i], prediction[ours + i], ignore, classes)
        cells[i] = np.uint32(np.uint32(np.uint32(row) * width) + np.uint32(column))
    for i in range(np.uint64(0), whole, np.uint64(LANES)):
        for lane in range(np.uint64(LANES)):
            lanes[lane, cells[i + lane]] += np.uint32(1)
    for i in range(whole, count):
        lanes[0, cells[i]] += np.uint32(1)


def _empty(  # pragma: no cover, runs as machine code
    lanes: np.ndarray, table: np.ndarray, margins: np.ndarray
) -> None:
    """Move the counts of an image from the lanes to the table of all and to the image's margins."""
    if lanes.size == 0:
        return
    rows, columns = table.shape
    for row in range(np.uint64(rows)):
        first, true = row * np.uint64(columns), np.uint32(0)
        for column in range(np.uint64(columns)):
            count = np.uint32(0)
            for lane in range(np.uint64(LANES)):
                count = np.uint32(count + lanes[lane, first + column])
                lanes[lane, first + column] = np.uint32(0)
            table[row, column] += count
            true = np.uint32(true + count)
            if row < np.uint64(columns - 1):
                margins[1, column] += count
                if row == column:
                    margins[2, row] = count
        if row < np.uint64(columns - 1):
            margins[0, row] = true
