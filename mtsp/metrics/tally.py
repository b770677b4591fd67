"""Counting which class was taken for which, in one pass over labels or class scores: a table for each image.

A table is int64, (classes + 2) x (classes + 1). Its rows are the true classes, then the ignored pixels, then true
labels that are neither; its columns are the predicted classes, then whatever is no class.

The compiled loops work on blocks of pixels that stay in the first-level cache: cells of the table as vector code, then
the counting. From scores the block's best classes come first, four planes at a time, so that every score is read once
and no image of labels exists. Scores of 16 bits are compared as whole numbers, without a float32 copy.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mtsp.metrics.native import Array, as_numpy, compiled, frozen, in_threads, on_host, threads

_BLOCK = 2048  # pixels
_LANES = 4  # tables counted in turn: neighbors have the same label, and one counter would wait for itself
_CELLS_AT_ONCE = 1 << 22  # of the tables held at a time: 32 MB
_WORTH_A_THREAD = 1 << 16  # pixels


def tables(prediction: Array, truth: Array, classes: int, ignore: int | None, *, scores: bool) -> Iterator[np.ndarray]:
    """Yield the tables of images 0, 1, ..., of as many at a time as may be held in memory, N x rows x columns.

    Args:
        prediction: labels of the shape of `truth`, or class scores, B x classes x H x W.
        truth: whole numbers, B x pixels in any shape, with scores BHW.
        classes: labels are 0..classes-1.
        ignore: true label of pixels that are not to be counted as a class, also when it is below `classes`.
        scores: whether `prediction` is scores: the highest wins, of equal ones the first; NaN among them is no class.
    """
    step = max(1, _CELLS_AT_ONCE // ((classes + 2) * (classes + 1)))
    unknown = -(1 << 62) if ignore is None else ignore
    for start in range(0, truth.shape[0], step):
        ours, theirs = prediction[start : start + step], truth[start : start + step]
        if not on_host(prediction):
            yield _torch_tables(ours, theirs, classes, unknown, scores)
        elif scores:
            yield _score_tables(ours, as_numpy(theirs), classes, unknown)
        else:
            yield _label_tables(as_numpy(ours), as_numpy(theirs), classes, unknown)


def _label_tables(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    prediction, truth = _labels(prediction, "prediction"), _labels(truth, "truth")
    if truth.ndim != 3:
        flat = (len(truth), 1, math.prod(truth.shape[1:]))
        prediction, truth = prediction.reshape(flat), truth.reshape(flat)
    code = _label_kernel()

    def count(ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray) -> None:
        if code is None:
            _add_numpy(ours, theirs, ignore, counts)
        else:
            lanes = _lanes(classes)
            code(*_memory(_dense(ours)), *_memory(_dense(theirs)), ignore, lanes, counts, theirs.shape)

    return _in_slabs(count, prediction, truth, classes)


def _score_tables(scores: Array, truth: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    truth, code = _labels(truth, "truth"), _score_kernel()
    values, infinity = (as_numpy(scores), None) if code is None else _comparable(scores)
    kind = np.min_scalar_type(classes)

    def count(ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray) -> None:
        if code is None:
            best = np.where(np.isnan(ours).any(axis=1), classes, ours.argmax(axis=1))
            _add_numpy(best, theirs, ignore, counts)
        else:
            best, guess = np.empty(_BLOCK, ours.dtype), np.empty(_BLOCK, kind)
            gathered = np.empty((4, _BLOCK), ours.dtype)
            room = (best, guess, gathered, frozen(gathered), _lanes(classes))
            code(*_memory(ours), *_memory(_dense(theirs)), ignore, infinity, *room, counts, theirs.shape)

    return _in_slabs(count, values, truth, classes)


def _in_slabs(count: Callable[..., None], prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Return the tables of all images, of each of which every thread counts a part.

    Args:
        count: given a part of prediction and truth, adds to the tables that are its third argument.
        prediction: ...HW.
        truth: BHW.
        classes: of the tables.
    """
    total = np.zeros((len(truth), classes + 2, classes + 1), np.int64)
    if not truth.size:
        return total
    if _rows_join(prediction) and _rows_join(truth):  # parts need not end where rows do
        prediction, truth = (array.reshape(*array.shape[:-2], 1, -1) for array in (prediction, truth))
    _, height, width = truth.shape
    parts = min(threads(), max(1, truth.size // _WORTH_A_THREAD))
    rows, columns = (1, -(-width // parts)) if height == 1 else (-(-height // parts), width)

    def counted(corner: tuple[int, int]) -> np.ndarray:
        slab = (..., slice(corner[0], corner[0] + rows), slice(corner[1], corner[1] + columns))
        counts = np.zeros_like(total)
        count(prediction[slab], truth[slab], counts)
        return counts

    for counts in in_threads(counted, [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]):
        total += counts
    return total


def _rows_join(array: np.ndarray) -> bool:
    return array.shape[-2] == 1 or array.strides[-2] == array.shape[-1] * array.strides[-1]


def _dense(array: np.ndarray) -> np.ndarray:
    """Return `array`, copied unless the pixels of its rows are neighbors in memory."""
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _memory(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the memory from the first element on, as one read-only row, and the array's steps in it.

    A loop is vector code only if it sees that neighbors are neighbors, and is compiled once if it sees no layout.
    """
    if any(step < 0 or step % array.itemsize for step in array.strides):
        array = np.ascontiguousarray(array)
    steps = tuple(step // array.itemsize for step in array.strides)
    length = 1 + sum(step * (size - 1) for step, size in zip(steps, array.shape, strict=True))
    return np.lib.stride_tricks.as_strided(array, (length,), (array.itemsize,), writeable=False), steps


def _lanes(classes: int) -> np.ndarray:
    return np.zeros((_LANES, (classes + 2) * (classes + 1)), np.uint32)


def _labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} of type {labels.dtype}; labels are whole numbers")
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    return labels.view(np.int64) if labels.dtype == np.uint64 else labels  # a label above 2**63 is no class either way


def _comparable(scores: Array) -> tuple[np.ndarray, int | None]:
    """Return scores as numpy. Of 16-bit floats, which numba does not have, the bits as int16, and infinity's bits."""
    if isinstance(scores, np.ndarray):
        if np.iscomplexobj(scores):
            raise ValueError(f"scores of type {scores.dtype}; scores are real numbers")
        if scores.dtype == np.longdouble:
            scores = scores.astype(np.float64)
        scores = scores.astype(scores.dtype.newbyteorder("="), copy=False)
        if scores.dtype == np.float16:
            return scores.view(np.int16), 0x7C00
        return (scores.view(np.uint8) if scores.dtype == np.bool_ else scores), None
    import torch

    infinity = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}.get(scores.dtype)
    if infinity is not None:
        return scores.detach().view(torch.int16).numpy(), infinity
    return _comparable(as_numpy(scores))


@functools.cache
def _label_kernel() -> Callable[..., Any] | None:
    return compiled(_count_labels, calls=(_tally, _empty))


@functools.cache
def _score_kernel() -> Callable[..., Any] | None:
    return compiled(_count_scores, calls=(_tally, _empty, _ordered, _better))


def _count_labels(  # pragma: no cover, runs as machine code
    prediction: np.ndarray,
    steps: tuple[int, int],
    truth: np.ndarray,
    truth_steps: tuple[int, int],
    ignore: int,
    lanes: np.ndarray,
    tables: np.ndarray,
    shape: tuple[int, int, int],
) -> None:
    """Add BHW labels, given as :func:`_memory`, to the tables of their images."""
    images, height, width = shape
    cells = np.empty(_BLOCK, np.uint32)
    for image in range(images):
        for y in range(height):
            for start in range(0, width, _BLOCK):
                count = min(_BLOCK, width - start)
                ours, theirs = image * steps[0] + y * steps[1], image * truth_steps[0] + y * truth_steps[1]
                some, others = prediction[ours + start :][:count], truth[theirs + start :][:count]
                _tally(some, others, ignore, cells, lanes, tables[image])
        _empty(lanes, tables[image])


def _count_scores(  # pragma: no cover, runs as machine code
    scores: np.ndarray,
    steps: tuple[int, int, int, int],
    truth: np.ndarray,
    truth_steps: tuple[int, int],
    ignore: int,
    infinity: int | None,
    best: np.ndarray,
    guess: np.ndarray,
    gathered: np.ndarray,
    planes: np.ndarray,
    lanes: np.ndarray,
    tables: np.ndarray,
    shape: tuple[int, int, int],
) -> None:
    """Add BKHW scores and BHW labels, given as :func:`_memory`: the best classes of a block, then their counts.

    Four planes at a time. The last ones of a number of classes that four does not divide are compared once more, which
    changes nothing. Where the pixels of a plane are not neighbors in memory, they are first `gathered`, 4 x _BLOCK;
    `planes` is the same memory, read-only, as `scores` is.
    """
    images, height, width = shape
    classes = tables.shape[2] - 1
    cells = np.empty(_BLOCK, np.uint32)
    dense = steps[3] == 1
    block = _BLOCK if dense else _BLOCK // 8
    for image in range(images):
        for y in range(height):
            for start in range(0, width, block):
                count = min(block, width - start)
                place = image * steps[0] + y * steps[2] + start * steps[3]
                for k in range(0, classes, 4):
                    k1, k2, k3 = min(k + 1, classes - 1), min(k + 2, classes - 1), min(k + 3, classes - 1)
                    if dense:
                        plane, plane1 = scores[place + k * steps[1] :][:count], scores[place + k1 * steps[1] :][:count]
                        plane2, plane3 = (
                            scores[place + k2 * steps[1] :][:count],
                            scores[place + k3 * steps[1] :][:count],
                        )
                    else:
                        for x in range(count):
                            here = place + x * steps[3]
                            gathered[0, x] = scores[here + k * steps[1]]
                            gathered[1, x] = scores[here + k1 * steps[1]]
                            gathered[2, x] = scores[here + k2 * steps[1]]
                            gathered[3, x] = scores[here + k3 * steps[1]]
                        plane, plane1, plane2, plane3 = planes[0], planes[1], planes[2], planes[3]
                    if k == 0:
                        for x in range(count):
                            best[x] = _ordered(plane[x], infinity)
                            guess[x] = 0
                    for x in range(count):
                        held = best[x], guess[x]
                        held = _better(held, _ordered(plane[x], infinity), k)
                        held = _better(held, _ordered(plane1[x], infinity), k1)
                        held = _better(held, _ordered(plane2[x], infinity), k2)
                        held = _better(held, _ordered(plane3[x], infinity), k3)
                        best[x], guess[x] = held
                for x in range(count):
                    lost = (best[x] != best[x]) if infinity is None else (best[x] == _NAN)
                    guess[x] = classes if lost else guess[x]
                others = truth[image * truth_steps[0] + y * truth_steps[1] + start :][:count]
                _tally(guess[:count], others, ignore, cells, lanes, tables[image])
        _empty(lanes, tables[image])


_NAN = np.int16(0x7FFF)  # of `_ordered` bits: nothing is greater


def _ordered(score: Any, infinity: int | None) -> Any:  # pragma: no cover, runs as machine code
    """Return a number that compares as the score does; a NaN of 16 bits becomes `_NAN`."""
    if infinity is None:
        return score
    size = np.int16(score & np.int16(0x7FFF))  # sign and magnitude: both zeros are 0
    signed = size if score >= 0 else np.int16(-size)
    return _NAN if size > infinity else signed


def _better(held: tuple[Any, Any], score: Any, k: Any) -> tuple[Any, Any]:  # pragma: no cover, runs as machine code
    """Return the best score and its class. A NaN takes the place of any score, and keeps it: nothing is greater."""
    take = (score > held[0]) | (score != score)
    return score if take else held[0], k if take else held[1]


def _tally(  # pragma: no cover, runs as machine code
    prediction: np.ndarray,
    truth: np.ndarray,
    ignore: int,
    cells: np.ndarray,
    lanes: np.ndarray,
    table: np.ndarray,
) -> None:
    """Count a block. Unsigned, a label below 0 is a large one; unsigned indices need no check for being negative."""
    classes, other, width = np.uint64(table.shape[1] - 1), np.uint64(table.shape[1]), np.uint32(table.shape[1])
    for i in range(truth.size):
        label = np.uint64(truth[i])
        row = other if label == classes else min(label, other)
        row = classes if truth[i] == ignore else row
        column = min(np.uint64(prediction[i]), classes)
        cells[i] = np.uint32(np.uint32(np.uint32(row) * width) + np.uint32(column))
    size, whole = np.uint64(truth.size), np.uint64(truth.size) & ~np.uint64(3)
    for i in range(np.uint64(0), whole, np.uint64(4)):
        for lane in range(np.uint64(4)):
            lanes[lane, cells[i + lane]] += np.uint32(1)
    for i in range(whole, size):
        lanes[0, cells[i]] += np.uint32(1)


def _empty(lanes: np.ndarray, table: np.ndarray) -> None:  # pragma: no cover, runs as machine code
    """Move the counts of the lanes to an image's table."""
    flat = table.reshape(table.size)
    for cell in range(flat.size):
        for lane in range(lanes.shape[0]):
            flat[cell] += np.int64(lanes[lane, cell])
            lanes[lane, cell] = 0


def _add_numpy(prediction: np.ndarray, truth: np.ndarray, ignore: int, tables: np.ndarray) -> None:
    """Add BHW labels to the tables of their images."""
    rows, columns = tables.shape[1:]
    for guesses, labels, table in zip(prediction, truth, tables, strict=True):
        guesses, labels = guesses.astype(np.int64), labels.astype(np.int64)  # a byte cannot hold what follows
        row = np.where((labels >= 0) & (labels < rows - 2), labels, rows - 1)
        row[labels == ignore] = rows - 2
        column = np.where((guesses >= 0) & (guesses < columns - 1), guesses, columns - 1)
        table += np.bincount((row * columns + column).ravel(), minlength=table.size).reshape(table.shape)


def _torch_tables(prediction: Any, truth: Any, classes: int, ignore: int, scores: bool) -> np.ndarray:
    """Return the tables of tensors, counted where the prediction lies; one wait for the device, at the end.

    Cells are added to without `bincount`, which waits for the largest one; in turn, since all the threads of a device
    would wait for the few cells of a picture of few classes.
    """
    import torch

    prediction = prediction.detach()
    truth = torch.as_tensor(truth, device=prediction.device).long()
    if scores:
        best, guess = prediction.max(dim=1)  # several times faster than argmax, and NaN wins, too
        prediction = guess.masked_fill_(best.isnan(), classes)
    prediction = prediction.long()  # in a byte, the number of classes may be another number
    row = torch.where((truth >= 0) & (truth < classes), truth, classes + 1).masked_fill_(truth == ignore, classes)
    column = torch.where((prediction >= 0) & (prediction < classes), prediction, classes)
    images, size = len(truth), (classes + 2) * (classes + 1)
    cells = (row * (classes + 1) + column).reshape(images, -1)
    lanes = 64 if images * size < 1 << 18 else 1
    lane = torch.arange(cells.shape[1], device=cells.device) % lanes
    first = torch.arange(images, device=cells.device)[:, None] * (lanes * size)
    cells = (cells + lane * size + first).flatten()
    counts = torch.zeros(images * lanes * size, dtype=torch.int64, device=cells.device)
    counts.scatter_add_(0, cells, torch.ones((), dtype=torch.int64, device=cells.device).expand_as(cells))
    return counts.reshape(images, lanes, classes + 2, classes + 1).sum(dim=1).cpu().numpy()
