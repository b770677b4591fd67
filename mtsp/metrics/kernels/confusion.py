"""Count pixels by true and predicted class, in one pass over labels or class scores.

The rows of a count table are the true classes, then ignored pixels, then any other true label. Its columns are the
predicted classes, then any other prediction.

With few classes, each image is first counted in its own table, which adds little time. With many classes, this table
could have more cells than the image has pixels, so images are counted directly in the common table. 16-bit scores are
compared as integers, without a float32 copy. The compiled loops are in `confusion_loops.py`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mtsp.metrics.kernels.confusion_loops import BLOCK, LANES, Special, label_kernel, pixel_kernel, plane_kernel
from mtsp.metrics.kernels.jit import Array, as_numpy, frozen, in_threads, memory, on_host, threads

_CELLS_AT_ONCE = 1 << 22  # most cells of all threads' tables, or of all images' on a device: 32 MB; in lanes 128 MB
_DEVICE_LANES, _CELLS_IN_LANES = 64, 1 << 18  # tables of each image on a device, if all have fewer cells than this
_CELLS_OF_ONE = 1 << 14  # most cells of an image's own table: four lanes fit into the second-level cache
_PIXELS_A_CELL = 16  # smallest number of pixels per cell for which an image has its own table
_PIXELS_A_THREAD = 1 << 16  # smallest number of pixels per thread
_NOTHING = -(1 << 62)  # stands for `ignore` None: no image has this label
_HALF, _BFLOAT = ((np.int16(infinity), np.int16(0x7FFF)) for infinity in (0x7C00, 0x7F80))  # float16 and bfloat16


class Counts(NamedTuple):
    """Numbers of pixels by true and predicted class, for a batch of images."""

    table: np.ndarray
    """Count table of all images together, int64, (classes + 2) x (classes + 1)."""
    images: np.ndarray
    """Margins of each image, int64, N x 3 x classes: number of true, predicted and correct known pixels of each class.
    While counting, there is an additional last entry for predictions out of range."""


def count_classes(prediction: Array, truth: Array, classes: int, ignore: int | None, *, scores: bool) -> Counts:
    """Return the counts of a batch of images.

    Args:
        prediction: labels with the shape of `truth`, or class scores, B x classes x H x W.
        truth: integer labels, B x any shape; BHW if `prediction` holds scores.
        classes: number of classes; labels are 0..classes-1.
        ignore: true label that is not counted as a class, even if it is below `classes`.
        scores: whether `prediction` holds scores. The highest score wins, of equal scores the lower class; a pixel with
            a NaN score has no predicted class.
    """
    unknown = _NOTHING if ignore is None else ignore
    if on_host(prediction):
        if scores:
            return _score_counts(prediction, as_numpy(truth), classes, unknown)
        return _label_counts(as_numpy(prediction), as_numpy(truth), classes, unknown)
    step = max(1, _CELLS_AT_ONCE // ((classes + 2) * (classes + 1)))
    parts = [slice(start, start + step) for start in range(0, max(1, len(truth)), step)]
    found = [_torch_counts(prediction[part], truth[part], classes, unknown, scores) for part in parts]
    return Counts(np.sum([some.table for some in found], axis=0), np.concatenate([some.images for some in found]))


def _label_counts(prediction: np.ndarray, truth: np.ndarray, classes: int, ignore: int) -> Counts:
    prediction, truth = _labels(prediction, "prediction"), _labels(truth, "truth")
    if truth.ndim != 3:
        flat = (len(truth), 1, math.prod(truth.shape[1:]))
        prediction, truth = prediction.reshape(flat), truth.reshape(flat)
    code, cells = label_kernel(), _lane_cells(truth, classes)

    def count(ours: np.ndarray, theirs: np.ndarray, found: Counts) -> None:
        if code is None:
            _add_numpy(ours, theirs, ignore, found)
        else:
            memories = (*memory(_dense(ours)), *memory(_dense(theirs)), _unsigned(ignore, ours, theirs))
            code(*memories, np.zeros((LANES, cells), np.uint32), found.table, found.images, theirs.shape)

    return _in_slabs(count, prediction, truth, classes, cells > 0)


def _score_counts(scores: Array, truth: np.ndarray, classes: int, ignore: int) -> Counts:
    truth, code = _labels(truth, "truth"), plane_kernel()
    values, special = (as_numpy(scores), None) if code is None else _comparable(scores)
    dense = values.strides[-1] == values.itemsize
    if code is not None and not dense:
        code = pixel_kernel()
        values, special = _as_bits(values, special)
    guess_type, cells = np.min_scalar_type(classes), _lane_cells(truth, classes)

    def count(ours: np.ndarray, theirs: np.ndarray, found: Counts) -> None:
        if code is None:
            best = np.where(np.isnan(ours).any(axis=1), classes, ours.argmax(axis=1))
            _add_numpy(best, theirs, ignore, found)
        else:
            guess = np.empty(BLOCK, guess_type)
            best = np.empty(BLOCK if dense else classes, ours.dtype)
            rooms = (best, guess) if dense else (best, frozen(best), guess)
            memories = (*memory(ours), *memory(_dense(theirs)), _unsigned(ignore, guess, theirs), special)
            lanes = np.zeros((LANES, cells), np.uint32)
            code(*memories, *rooms, lanes, found.table, found.images, theirs.shape)

    return _in_slabs(count, values, truth, classes, cells > 0)


def _in_slabs(
    count: Callable[[np.ndarray, np.ndarray, Counts], None],
    prediction: np.ndarray,
    truth: np.ndarray,
    classes: int,
    few: bool,
) -> Counts:
    """Return the counts of ...HW predictions and BHW truth; `count` is called for parts of both, in threads.

    `few` is True if there are so few classes that each image is counted in lanes.
    """
    shape = (classes + 2, classes + 1)
    images = np.zeros((len(truth), 3, classes + 1), np.int64)
    if not truth.size:
        return Counts(np.zeros(shape, np.int64), images[:, :, :classes])
    if _rows_join(prediction) and _rows_join(truth):  # then parts need not end at the end of a row
        prediction, truth = (array.reshape(*array.shape[:-2], 1, -1) for array in (prediction, truth))
    slabs = _slabs(truth.shape, math.prod(shape), few)

    def counted(slab: tuple[slice, slice, slice]) -> Counts:
        found = Counts(np.zeros(shape, np.int64), np.zeros_like(images[slab[0]]))
        count(prediction[slab[0], ..., slab[1], slab[2]], truth[slab], found)
        return found

    parts = in_threads(counted, slabs)
    for slab, part in zip(slabs, parts, strict=True):
        images[slab[0]] += part.images
    return Counts(np.sum([part.table for part in parts], axis=0), images[:, :, :classes])


def _slabs(shape: tuple[int, ...], cells: int, few: bool) -> list[tuple[slice, slice, slice]]:
    """Return slices of a BHW array for threads: whole images if there are enough, else a part of each image.

    Each part has a table with `cells` cells. If `few`, there are more parts than threads.
    """
    images, height, _ = shape
    every = slice(None)
    parts = min(threads(), math.prod(shape) // max(_PIXELS_A_THREAD, cells), max(1, _CELLS_AT_ONCE // cells))
    if parts <= 1:
        return [(every, every, every)]
    of_images = 4 * parts if few else parts
    axis, parts = (0, of_images) if images >= of_images else (2 if height == 1 else 1, parts)
    step = -(-shape[axis] // parts)
    cuts = [slice(start, start + step) for start in range(0, shape[axis], step)]
    return [(cut if axis == 0 else every, cut if axis == 1 else every, cut if axis == 2 else every) for cut in cuts]


def _rows_join(array: np.ndarray) -> bool:
    return array.shape[-2] == 1 or array.strides[-2] == array.shape[-1] * array.strides[-1]


def _dense(array: np.ndarray) -> np.ndarray:
    """Return `array`, copied unless its rows are contiguous in memory."""
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _lane_cells(truth: np.ndarray, classes: int) -> int:
    """Return the number of cells of an image's own table; 0 if there are too many cells or pixels for one."""
    cells, pixels = (classes + 2) * (classes + 1), math.prod(truth.shape[1:])
    return cells if cells <= min(_CELLS_OF_ONE, pixels // _PIXELS_A_CELL) and pixels < 1 << 32 else 0


def _labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.dtype == np.bool_:
        return labels.view(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} of type {labels.dtype}; labels are whole numbers")
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    return labels.view(np.int64) if labels.dtype == np.uint64 else labels  # above 2**63: out of range in both types


def _unsigned(ignore: int, *labels: np.ndarray) -> Any:
    """Return `ignore` as an unsigned integer to compare `labels` with; of 32 bits for small labels."""
    if any(some.itemsize > 2 for some in labels):
        return np.uint64(ignore % (1 << 64))
    possible = -(1 << 15) <= ignore < 1 << 16
    return np.uint32((ignore if possible else 1 << 20) % (1 << 32))


def _comparable(scores: Array) -> tuple[np.ndarray, Special]:
    """Return scores as numpy; 16-bit floats, which numba does not support, as int16 bits with their special values."""
    if isinstance(scores, np.ndarray):
        if np.iscomplexobj(scores):
            raise ValueError(f"scores of type {scores.dtype}; scores are real numbers")
        scores = scores.astype(scores.dtype.newbyteorder("="), copy=False)
        if scores.dtype == np.longdouble:
            scores = scores.astype(np.float64)
        if scores.dtype == np.float16:
            return scores.view(np.int16), _HALF
        return (scores.view(np.uint8) if scores.dtype == np.bool_ else scores), None
    import torch

    special = {torch.float16: _HALF, torch.bfloat16: _BFLOAT}.get(scores.dtype)
    if special is not None:
        return scores.detach().view(torch.int16).numpy(), special
    return _comparable(as_numpy(scores))


def _as_bits(values: np.ndarray, special: Special) -> tuple[np.ndarray, Special]:
    """Return 32- and 64-bit floats as integers, as :func:`_comparable` does for 16-bit floats."""
    if not np.issubdtype(values.dtype, np.floating):
        return values, special
    bits = np.dtype(f"i{values.itemsize}").type
    infinity = np.array(np.inf, values.dtype).view(bits)[()]
    return values.view(bits), (infinity, bits(np.iinfo(bits).max))


def _add_numpy(prediction: np.ndarray, truth: np.ndarray, ignore: int, found: Counts) -> None:
    """Add BHW labels to the table of all images and to the margins of each."""
    table, images = found
    rows, columns = table.shape
    for guesses, labels, margins in zip(prediction, truth, images, strict=True):
        guesses, labels = guesses.astype(np.int64), labels.astype(np.int64)  # the sums below do not fit into a byte
        row = np.where((labels >= 0) & (labels < rows - 2), labels, rows - 1)
        row[labels == ignore] = rows - 2
        column = np.where((guesses >= 0) & (guesses < columns - 1), guesses, columns - 1)
        table += np.bincount((row * columns + column).ravel(), minlength=table.size).reshape(table.shape)
        row, column = (places[row < rows - 2] for places in (row, column))
        for margin, places in zip(margins, (row, column, row[row == column]), strict=True):
            margin += np.bincount(places, minlength=margin.size)


def _torch_counts(prediction: Any, truth: Any, classes: int, ignore: int, scores: bool) -> Counts:
    """Return the counts of tensors, computed on the prediction's device; wait for the device only once, at the end.

    `bincount` would wait for the largest cell index. Neighboring pixels are counted in different tables ("lanes");
    otherwise, with few classes, all threads would wait for the same few cells.
    """
    import torch

    prediction = prediction.detach()
    truth = torch.as_tensor(truth, device=prediction.device).long()
    if scores:
        best, guess = prediction.max(dim=1)  # several times faster than argmax; NaN wins in both
        prediction = guess.masked_fill_(best.isnan(), classes)
    prediction = prediction.long()  # the number of classes may not fit into a byte
    row = torch.where((truth >= 0) & (truth < classes), truth, classes + 1).masked_fill_(truth == ignore, classes)
    column = torch.where((prediction >= 0) & (prediction < classes), prediction, classes)
    images, size = len(truth), (classes + 2) * (classes + 1)
    cells = (row * (classes + 1) + column).reshape(images, -1)
    lanes = _DEVICE_LANES if images * size < _CELLS_IN_LANES else 1
    lane = torch.arange(cells.shape[1], device=cells.device) % lanes
    first = torch.arange(images, device=cells.device)[:, None] * (lanes * size)
    cells = (cells + lane * size + first).flatten()
    pixels = torch.zeros(images * lanes * size, dtype=torch.int64, device=cells.device)
    pixels.scatter_add_(0, cells, torch.ones((), dtype=torch.int64, device=cells.device).expand_as(cells))
    tables = pixels.reshape(images, lanes, classes + 2, classes + 1).sum(dim=1)
    known = tables[:, :classes]
    margins = (known.sum(dim=2), known.sum(dim=1)[:, :classes], known.diagonal(dim1=1, dim2=2))
    found = torch.cat([tables.sum(dim=0).flatten(), torch.stack(margins, dim=1).flatten()]).cpu().numpy()
    return Counts(found[:size].reshape(classes + 2, classes + 1), found[size:].reshape(images, 3, classes))
