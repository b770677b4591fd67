"""Compiled loops that count classes: from labels, from scores with contiguous pixels, and from scores in other layouts.

The loops work on blocks of pixels that fit into the first-level cache. Vector code computes the cell of each pixel in
the count table. Then the pixels are counted in the image's own tables ("lanes"), which are added to the table of all
images and to the image's margins at the end of the image. If a lane would have too many cells, pixels are counted
directly in the table and the margins. Arrays are passed as memory and steps
(:func:`~mtsp.metrics.kernels.jit.memory`), since numba's reference counting makes views slow.

If the pixels of a score plane are contiguous, the best classes of a block are found first, four planes at a time, so
that every score is read once and no image of labels is stored. Otherwise, the best class of each pixel is found among
its own scores, which are contiguous in a channels_last tensor.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mtsp.metrics.kernels.jit import Steps, compiled

BLOCK = 2048
"""Number of pixels in a block."""

LANES = 4
"""Number of tables for neighboring pixels to use in turn. Neighbors often have the same label, and counting them in one
cell would make each wait for the one before."""

Special = tuple[Any, Any] | None
"""The bits of an infinite float, and a mask of all bits but the sign. Larger bits under the mask are NaN."""


@functools.cache
def label_kernel() -> Callable[..., Any] | None:
    """Return :func:`_count_labels` as machine code."""
    return compiled(_count_labels, calls=_COUNTING)


@functools.cache
def plane_kernel() -> Callable[..., Any] | None:
    """Return :func:`_count_planes` as machine code."""
    return compiled(_count_planes, calls=(*_COUNTING, _ordered, _better))


@functools.cache
def pixel_kernel() -> Callable[..., Any] | None:
    """Return :func:`_count_pixels` as machine code."""
    return compiled(_count_pixels, calls=(*_COUNTING, _ordered, _highest))


def _count_labels(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, steps: Steps, truth: np.ndarray, truth_steps: Steps, ignore: Any,
    lanes: np.ndarray, table: np.ndarray, margins: np.ndarray, shape: tuple[int, int, int],
) -> None:  # fmt: skip
    """Add BHW labels to the table of all images and to the margins of each.

    64-bit labels are counted without the pass over cells: they are limited by memory, which would be idle meanwhile.
    """
    images, height, width = shape
    wide = prediction.itemsize == 8 and truth.itemsize == 8
    block, cells = width if wide else BLOCK, np.empty(0 if wide else BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            ours = steps[0] + image * steps[1] + y * steps[2]
            theirs = truth_steps[0] + image * truth_steps[1] + y * truth_steps[2]
            for x in range(0, width, block):
                pixels = ours + x, theirs + x, min(block, width - x)
                _count_block(prediction, truth, pixels, ignore, cells, lanes, table, margins, image)
        _empty_lanes(lanes, table, margins, image)


def _count_planes(  # pragma: no cover, runs as machine code
    scores: np.ndarray, steps: Steps, truth: np.ndarray, truth_steps: Steps, ignore: Any, special: Special,
    best: np.ndarray, guess: np.ndarray,
    lanes: np.ndarray, table: np.ndarray, margins: np.ndarray, shape: tuple[int, int, int],
) -> None:  # fmt: skip
    """Count BKHW scores with contiguous rows, and BHW labels; `best` and `guess` have room for a block.

    If the number of classes is not a multiple of four, the last plane is compared repeatedly, which is harmless.
    """
    images, height, width = shape
    classes = table.shape[1] - 1
    kind = guess.dtype.type  # as narrow as possible: 64-bit classes would need more vectors than their scores
    cells = np.empty(BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            for start in range(0, width, BLOCK):
                count = min(BLOCK, width - start)
                place, pixels = steps[0] + image * steps[1] + y * steps[3] + start, np.uint64(count)
                for k in range(0, classes, 4):
                    k1, k2, k3 = min(k + 1, classes - 1), min(k + 2, classes - 1), min(k + 3, classes - 1)
                    plane, plane1 = np.uint64(place + k * steps[2]), np.uint64(place + k1 * steps[2])
                    plane2, plane3 = np.uint64(place + k2 * steps[2]), np.uint64(place + k3 * steps[2])
                    if k == 0:
                        for x in range(pixels):
                            best[x] = _ordered(scores[plane + x], special)
                            guess[x] = 0
                    for x in range(pixels):
                        held = best[x], guess[x]
                        held = _better(held, _ordered(scores[plane + x], special), kind(k))
                        held = _better(held, _ordered(scores[plane1 + x], special), kind(k1))
                        held = _better(held, _ordered(scores[plane2 + x], special), kind(k2))
                        held = _better(held, _ordered(scores[plane3 + x], special), kind(k3))
                        best[x], guess[x] = held
                for x in range(pixels):
                    lost = (best[x] != best[x]) if special is None else (best[x] == special[1])
                    guess[x] = classes if lost else guess[x]
                theirs = truth_steps[0] + image * truth_steps[1] + y * truth_steps[2] + start
                _count_block(guess, truth, (0, theirs, count), ignore, cells, lanes, table, margins, image)
        _empty_lanes(lanes, table, margins, image)


def _count_pixels(  # pragma: no cover, runs as machine code
    scores: np.ndarray, steps: Steps, truth: np.ndarray, truth_steps: Steps, ignore: Any, special: Special,
    pixel: np.ndarray, frozen_pixel: np.ndarray, guess: np.ndarray,
    lanes: np.ndarray, table: np.ndarray, margins: np.ndarray, shape: tuple[int, int, int],
) -> None:  # fmt: skip
    """Count BKHW scores with any steps, stored as integers or bits of floats, and BHW labels; `guess` has room for a
    block.

    If the scores of a pixel are not contiguous, they are first copied to `pixel`. `frozen_pixel` is a read-only view of
    it, since `scores` is read-only, too.
    """
    images, height, width = shape
    classes = table.shape[1] - 1
    cells = np.empty(BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            for start in range(0, width, BLOCK):
                count = min(BLOCK, width - start)
                for x in range(count):
                    place = steps[0] + image * steps[1] + y * steps[3] + (start + x) * steps[4]
                    if steps[2] == 1:
                        guess[x] = _highest(scores, place, classes, special)
                    else:
                        for k in range(classes):
                            pixel[k] = scores[place + k * steps[2]]
                        guess[x] = _highest(frozen_pixel, 0, classes, special)
                theirs = truth_steps[0] + image * truth_steps[1] + y * truth_steps[2] + start
                _count_block(guess, truth, (0, theirs, count), ignore, cells, lanes, table, margins, image)
        _empty_lanes(lanes, table, margins, image)


def _highest(  # pragma: no cover, runs as machine code
    scores: np.ndarray, place: int, count: int, special: Special
) -> Any:
    """Return the class with the highest of `count` scores from `place` on, of equal scores the lower class.

    Return `count` if a score is NaN. Scores are integers, since vector code for floats ignores NaN.
    """
    first, classes = np.uint64(place), np.int32(count)
    top = _ordered(scores[first], special)
    for k in range(np.uint64(count)):
        score = _ordered(scores[first + k], special)
        top = score if score > top else top
    best = classes
    for k in range(np.uint64(count)):
        here = np.int32(k) if _ordered(scores[first + k], special) == top else classes
        best = here if here < best else best
    if special is not None:
        best = classes if top == special[1] else best
    return best


def _ordered(score: Any, special: Special) -> Any:  # pragma: no cover, runs as machine code
    """Return a number that is ordered like the score; for the bits of NaN, the largest number."""
    if special is None:
        return score
    infinity, nan = special
    kind = type(nan)
    size = kind(score & nan)  # sign and magnitude: both zeros are 0
    signed = size if score >= 0 else kind(-size)
    return nan if size > infinity else signed


def _better(held: tuple[Any, Any], score: Any, k: Any) -> tuple[Any, Any]:  # pragma: no cover, runs as machine code
    """Return the higher score and its class; NaN is higher than any number."""
    take = (score > held[0]) | (score != score)
    return score if take else held[0], k if take else held[1]


def _count_block(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, pixels: tuple[int, int, int], ignore: Any,
    cells: np.ndarray, lanes: np.ndarray, table: np.ndarray, margins: np.ndarray, image: int,
) -> None:  # fmt: skip
    """Count a block in the lanes or, with many classes, in the table of all images and the margins of the image.

    Args:
        prediction: memory of predicted labels.
        truth: memory of true labels.
        pixels: start of the block in `prediction`, start in `truth`, and number of pixels.
        ignore: true label that is not counted as a class, in the unsigned type that labels are compared in.
        cells: room for a block; empty for 64-bit labels.
        lanes: tables of the image, LANES x cells; empty if there would be too many cells.
        table: counts of all images.
        margins: margins of each image.
        image: index of the block's image.
    """
    unsigned = np.uint64(pixels[0]), np.uint64(pixels[1]), np.uint64(pixels[2])
    if lanes.size == 0:
        _count_in_table(prediction, truth, unsigned, ignore, table, margins, image)
    elif cells.size == 0:
        _count_as_read(prediction, truth, unsigned, ignore, lanes, table.shape[1])
    else:
        _count_cells(prediction, truth, unsigned, ignore, cells, lanes, table.shape[1])


def _count_in_table(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, pixels: tuple[Any, Any, Any], ignore: Any,
    table: np.ndarray, margins: np.ndarray, image: int,
) -> None:  # fmt: skip
    """Count a block without lanes."""
    ours, theirs, count = pixels
    classes = type(ignore)(table.shape[1] - 1)
    for i in range(count):
        row, column = _cell(truth[theirs + i], prediction[ours + i], ignore, classes)
        table[row, column] += 1
        if row < classes:
            margins[image, 0, row] += 1
            margins[image, 1, column] += 1
            margins[image, 2, row] += row == column


def _count_as_read(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, pixels: tuple[Any, Any, Any], ignore: Any,
    lanes: np.ndarray, columns: int,
) -> None:  # fmt: skip
    """Count a block in the lanes, pixel by pixel."""
    ours, theirs, count = pixels
    classes, width = type(ignore)(columns - 1), np.uint64(columns)
    whole = count & ~np.uint64(LANES - 1)
    for i in range(np.uint64(0), whole, np.uint64(LANES)):
        for lane in range(np.uint64(LANES)):
            row, column = _cell(truth[theirs + i + lane], prediction[ours + i + lane], ignore, classes)
            lanes[lane, np.uint64(row) * width + np.uint64(column)] += np.uint32(1)
    for i in range(whole, count):
        row, column = _cell(truth[theirs + i], prediction[ours + i], ignore, classes)
        lanes[0, np.uint64(row) * width + np.uint64(column)] += np.uint32(1)


def _count_cells(  # pragma: no cover, runs as machine code
    prediction: np.ndarray, truth: np.ndarray, pixels: tuple[Any, Any, Any], ignore: Any,
    cells: np.ndarray, lanes: np.ndarray, columns: int,
) -> None:  # fmt: skip
    """Count a block in the lanes, after vector code has computed its `cells`."""
    ours, theirs, count = pixels
    classes, width = type(ignore)(columns - 1), np.uint32(columns)
    for i in range(count):
        row, column = _cell(truth[theirs + i], prediction[ours + i], ignore, classes)
        cells[i] = np.uint32(np.uint32(np.uint32(row) * width) + np.uint32(column))
    whole = count & ~np.uint64(LANES - 1)
    for i in range(np.uint64(0), whole, np.uint64(LANES)):
        for lane in range(np.uint64(LANES)):
            lanes[lane, cells[i + lane]] += np.uint32(1)
    for i in range(whole, count):
        lanes[0, cells[i]] += np.uint32(1)


def _cell(label: Any, guess: Any, ignore: Any, classes: Any) -> tuple[Any, Any]:  # pragma: no cover, machine code
    """Return row and column in the unsigned type of `ignore`, in which negative labels become large ones."""
    kind = type(ignore)
    label, other = kind(label), kind(classes + kind(1))
    row = other if label == classes else min(label, other)  # row `classes` counts ignored pixels
    return classes if label == ignore else row, min(kind(guess), classes)


def _empty_lanes(  # pragma: no cover, runs as machine code
    lanes: np.ndarray, table: np.ndarray, margins: np.ndarray, image: int
) -> None:
    """Move the counts of an image from the lanes to the table of all images and to its margins."""
    if lanes.size == 0:
        return
    rows, columns = np.uint64(table.shape[0]), np.uint64(table.shape[1])
    classes = columns - np.uint64(1)
    for row in range(rows):
        first, true = row * columns, np.uint32(0)
        for column in range(columns):
            count = np.uint32(0)
            for lane in range(np.uint64(LANES)):
                count = np.uint32(count + lanes[lane, first + column])
                lanes[lane, first + column] = np.uint32(0)
            table[row, column] += count
            true = np.uint32(true + count)
            if row < classes:
                margins[image, 1, column] += count
                margins[image, 2, row] += count if row == column else np.uint32(0)
        if row < classes:
            margins[image, 0, row] += true


_COUNTING = (_count_block, _count_in_table, _count_as_read, _count_cells, _cell, _empty_lanes)
