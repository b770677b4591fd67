"""Counting which class was taken for which, in one pass over labels or class scores: a table, and images' margins.

The table is int64, (classes + 2) x (classes + 1). Its rows are the true classes, then the ignored pixels, then true
labels that are neither; its columns are the predicted classes, then whatever is no class.

Of few classes each image has a table of its own first, which costs nothing beside its pixels. Of many, counting into a
table with more cells than the image has pixels would cost more than all the rest. The loops are in `tally_loops.py`.
Scores of 16 bits are compared as whole numbers, without a float32 copy.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mtsp.metrics.native import Array, as_numpy, frozen, in_threads, on_host, threads
from mtsp.metrics.tally_loops import BLOCK, Special, label_kernel, pixel_kernel, plane_kernel

_LANES = 4  # tables counted in turn: neighbors have the same label, and one counter would wait for itself
_CELLS_AT_ONCE = 1 << 22  # of the tables held at a time: 32 MB
_CELLS_OF_ONE = 1 << 14  # of an image's table: four lanes of it in the second-level cache
_PIXELS_A_CELL = 16  # at least, where each image has a table
_WORTH_A_THREAD = 1 << 16  # pixels
_HALF, _BFLOAT = ((np.int16(infinity), np.int16(0x7FFF)) for infinity in (0x7C00, 0x7F80))  # float16 and bfloat16


class Counts(NamedTuple):
    """What was counted in some images."""

    table: np.ndarray
    """Of all of them, rows x columns."""
    images: np.ndarray
    """Of each, its known pixels by class, int64, N x 3 x classes: true, predicted and right ones."""


_Tables = tuple[np.ndarray, np.ndarray]
"""One table of each image and no margins, or of many classes one table of all and the margins of each."""


def counts(prediction: Array, truth: Array, classes: int, ignore: int | None, *, scores: bool) -> Iterator[Counts]:
    """Yield the counts of images 0, 1, ..., of as many at a time as their tables may be held in memory.

    Args:
        prediction: labels of the shape of `truth`, or class scores, B x classes x H x W.
        truth: whole numbers, B x pixels in any shape, with scores BHW.
        classes: labels are 0..classes-1.
        ignore: true label of pixels that are not to be counted as a class, also when it is below `classes`.
        scores: whether `prediction` is scores: the highest wins, of equal ones the first; NaN among them is no class.
    """
    cells, pixels = (classes + 2) * (classes + 1), math.prod(truth.shape[1:])
    many = on_host(prediction) and cells > min(_CELLS_OF_ONE, pixels // _PIXELS_A_CELL)
    step = max(1, len(truth) if many else _CELLS_AT_ONCE // cells)
    unknown = -(1 << 62) if ignore is None else ignore
    for start in range(0, truth.shape[0], step):
        ours, theirs = prediction[start : start + step], truth[start : start + step]
        if not on_host(prediction):
            yield _summed(_torch_tables(ours, theirs, classes, unknown, scores))
            continue
        if scores:
            tables, margins = _score_tables(ours, as_numpy(theirs), classes, unknown, many)
        else:
            tables, margins = _label_tables(as_numpy(ours), as_numpy(theirs), classes, unknown, many)
        yield Counts(tables[0], margins[:, :, :classes]) if many else _summed(tables)


def _summed(tables: np.ndarray) -> Counts:
    """Return the sums of a table of each image."""
    classes = tables.shape[2] - 1
    known = tables[:, :classes]
    margins = (known.sum(axis=2), known[:, :, :classes].sum(axis=1), np.diagonal(known, axis1=1, axis2=2))
    return Counts(tables.sum(axis=0), np.stack(margins, axis=1))


def _label_tables(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int, many: bool) -> _Tables:
    prediction, truth = _labels(prediction, "prediction"), _labels(truth, "truth")
    if truth.ndim != 3:
        flat = (len(truth), 1, math.prod(truth.shape[1:]))
        prediction, truth = prediction.reshape(flat), truth.reshape(flat)
    code = label_kernel()

    def count(ours: np.ndarray, theirs: np.ndarray, tables: np.ndarray, margins: np.ndarray) -> None:
        if code is None:
            _add_numpy(ours, theirs, ignore, tables, margins)
        else:
            word, lanes = _word(ignore, ours, theirs), _lanes(classes, many)
            code(*_memory(_dense(ours)), *_memory(_dense(theirs)), word, lanes, tables, margins, theirs.shape)

    return _in_slabs(count, prediction, truth, classes, many)


def _score_tables(scores: Array, truth: np.ndarray, classes: int, ignore: int, many: bool) -> _Tables:
    truth, code = _labels(truth, "truth"), plane_kernel()
    values, special = (as_numpy(scores), None) if code is None else _comparable(scores)
    dense = values.strides[-1] == values.itemsize
    if code is not None and not dense:
        code = pixel_kernel()
        values, special = _as_bits(values, special)
    guess_type = np.min_scalar_type(classes)

    def count(ours: np.ndarray, theirs: np.ndarray, tables: np.ndarray, margins: np.ndarray) -> None:
        if code is None:
            best = np.where(np.isnan(ours).any(axis=1), classes, ours.argmax(axis=1))
            _add_numpy(best, theirs, ignore, tables, margins)
        else:
            guess = np.empty(BLOCK, guess_type)
            held = np.empty(BLOCK if dense else classes, ours.dtype)
            room = (held, guess) if dense else (held, frozen(held), guess)
            word = _word(ignore, guess, theirs)
            room = (*room, _lanes(classes, many), tables, margins)
            code(*_memory(ours), *_memory(_dense(theirs)), word, special, *room, theirs.shape)

    return _in_slabs(count, values, truth, classes, many)


def _in_slabs(
    count: Callable[..., None], prediction: np.ndarray, truth: np.ndarray, classes: int, many: bool
) -> _Tables:
    """Return the tables and margins of all images, of each of which every thread counts a part.

    Args:
        count: given a part of prediction and truth, adds to the tables and margins that are its other arguments.
        prediction: ...HW.
        truth: BHW.
        classes: of the tables.
        many: whether there is one table of all images, and the margins of each.
    """

    def nothing() -> _Tables:
        shape = (1 if many else len(truth), classes + 2, classes + 1)
        return np.zeros(shape, np.int64), np.zeros((len(truth) if many else 0, 3, classes + 1), np.int64)

    if not truth.size:
        return nothing()
    if _rows_join(prediction) and _rows_join(truth):  # parts need not end where rows do
        prediction, truth = (array.reshape(*array.shape[:-2], 1, -1) for array in (prediction, truth))
    _, height, width = truth.shape
    parts = min(threads(), max(1, truth.size // _WORTH_A_THREAD))
    rows, columns = (1, -(-width // parts)) if height == 1 else (-(-height // parts), width)

    def counted(corner: tuple[int, int]) -> _Tables:
        slab = (..., slice(corner[0], corner[0] + rows), slice(corner[1], corner[1] + columns))
        found = nothing()
        count(prediction[slab], truth[slab], *found)
        return found

    corners = [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]
    (tables, margins), *others = in_threads(counted, corners)
    for more_tables, more_margins in others:
        tables += more_tables
        margins += more_margins
    return tables, margins


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


def _lanes(classes: int, many: bool) -> np.ndarray:
    return np.zeros((_LANES, 0 if many else (classes + 2) * (classes + 1)), np.uint32)


def _labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} of type {labels.dtype}; labels are whole numbers")
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    return labels.view(np.int64) if labels.dtype == np.uint64 else labels  # a label above 2**63 is no class either way


def _word(ignore: int, *labels: np.ndarray) -> Any:
    """Return `ignore` as the unsigned number that these labels are compared as: 64 bits are too slow for small ones."""
    if any(some.itemsize > 2 for some in labels):
        return np.uint64(ignore % (1 << 64))
    possible = -(1 << 15) <= ignore < 1 << 16
    return np.uint32((ignore if possible else 1 << 20) % (1 << 32))


def _comparable(scores: Array) -> tuple[np.ndarray, Special]:
    """Return scores as numpy: of 16-bit floats, which numba does not have, the bits as int16, and which are special."""
    if isinstance(scores, np.ndarray):
        if np.iscomplexobj(scores):
            raise ValueError(f"scores of type {scores.dtype}; scores are real numbers")
        if scores.dtype == np.longdouble:
            scores = scores.astype(np.float64)
        scores = scores.astype(scores.dtype.newbyteorder("="), copy=False)
        if scores.dtype == np.float16:
            return scores.view(np.int16), _HALF
        return (scores.view(np.uint8) if scores.dtype == np.bool_ else scores), None
    import torch

    special = {torch.float16: _HALF, torch.bfloat16: _BFLOAT}.get(scores.dtype)
    if special is not None:
        return scores.detach().view(torch.int16).numpy(), special
    return _comparable(as_numpy(scores))


def _as_bits(values: np.ndarray, special: Special) -> tuple[np.ndarray, Special]:
    """Return floats of 32 and 64 bits as whole numbers, as :func:`_comparable` does those of 16."""
    if not np.issubdtype(values.dtype, np.floating):
        return values, special
    bits = np.dtype(f"i{values.itemsize}").type
    infinity = np.array(np.inf, values.dtype).view(bits)[()]
    return values.view(bits), (infinity, bits(np.iinfo(bits).max))


def _add_numpy(prediction: np.ndarray, truth: np.ndarray, ignore: int, tables: np.ndarray, margins: np.ndarray) -> None:
    """Add BHW labels to the tables of their images, or to the one table and the margins of each."""
    rows, columns = tables.shape[1:]
    for image, (guesses, labels) in enumerate(zip(prediction, truth, strict=True)):
        guesses, labels = guesses.astype(np.int64), labels.astype(np.int64)  # a byte cannot hold what follows
        row = np.where((labels >= 0) & (labels < rows - 2), labels, rows - 1)
        row[labels == ignore] = rows - 2
        column = np.where((guesses >= 0) & (guesses < columns - 1), guesses, columns - 1)
        if not len(margins):
            table = tables[image]
            table += np.bincount((row * columns + column).ravel(), minlength=table.size).reshape(table.shape)
            continue
        np.add.at(tables.reshape(-1), (row * columns + column).ravel(), 1)
        row, column = (places[row < rows - 2] for places in (row, column))
        for margin, places in zip(margins[image], (row, column, row[row == column]), strict=True):
            margin += np.bincount(places, minlength=margin.size)


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
