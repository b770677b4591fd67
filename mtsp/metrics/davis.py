"""The DAVIS measures of videos: J and F of every frame of every object, and their statistics.

After Perazzi et al., CVPR 2016, section 4, for one object (see :mod:`mtsp.metrics.boundary`), and Pont-Tuset et al.,
"The 2017 DAVIS Challenge on Video Object Segmentation" (arXiv:1704.00675), section 3, for several: the numbers are
those of the official evaluation code, 2016 and 2017 semi-supervised, with three departures. Decay is right beyond 256
frames, where that code's 8-bit frame indices wrap around. The objects of a sequence are those in the true mask of its
first frame; that code takes every number up to the highest one, so that a number left out scores 1. Void pixels do not
count; that code takes them for background, except in its unsupervised task.

T, the temporal stability of 2016, is left out: the paper does not give the details of its matching of shape contexts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtsp.metrics.boundary import BOUND, as_pair, region_and_boundary
from mtsp.metrics.kernels.jit import Array, as_numpy
from mtsp.text import natural_order


def statistics(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return mean, recall (share of values above 0.5) and decay (mean of the first quarter less that of the last).

    The quarters of n frames are cut at round(linspace(1, n, 5)), and neighbors share the frame of the cut. Of no
    values, all three are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return math.nan, math.nan, math.nan
    cuts = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[: cuts[1] + 1], values[cuts[3] :]
    return float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())


class Frame(NamedTuple):
    """Scores of one frame."""

    true: tuple[int, ...]
    """Numbers of the objects in the true mask."""
    scores: dict[int, tuple[float, float]]
    """J and F of the objects in the true or the predicted mask; in neither, both are 1."""
    known: bool = True
    """Whether the true mask is known anywhere; if it is not, the frame does not count."""


class DavisMeasure:
    """J and F of every frame seen, and their statistics by the benchmark's rules.

    The first and the last frame of a sequence, in the order of their names, do not count: the first is given to
    semi-supervised methods, and some compared methods left out the last. So every frame of a sequence must be added.
    The value of a data set is the mean over its objects, whatever the length of their sequences.

    Args:
        bound: the tolerance of F, see :func:`mtsp.metrics.boundary.boundary_measure`.
        every_frame: count the first and the last frame, too, as the unsupervised task of 2017 does.
        objects: those of a sequence's first true mask, or `all`, each in the frames from its first true mask on.
    """

    def __init__(
        self, bound: float = BOUND, *, every_frame: bool = False, objects: Literal["first", "all"] = "first"
    ) -> None:
        self.bound, self.every_frame, self.objects = bound, every_frame, objects
        self.frames: dict[str, dict[str, Frame]] = {}  # sequence -> frame -> measured

    def update(self, name: str, prediction: Array, truth: Array, known: Array | None = None) -> None:
        """Add the frame `name`, "sequence/frame" or "frame" of a sequence called "."; HW masks, not 0 = the object.

        Where `known` (HW) is false, a pixel counts neither for nor against it; if it is false everywhere, the frame
        does not count.

        Raises:
            ValueError: the masks differ in size or are not HW, or the name was added before.
        """
        self._measure(name, lambda: _object(prediction, truth, known, self.bound))

    def update_objects(self, name: str, prediction: Array, truth: Array, void: int | None = 255) -> None:
        """Add a frame with several objects; name and errors as for :meth:`update`.

        Args:
            name: name of the frame.
            prediction: HW whole numbers: the object of each pixel, 0 = none. Numbers that are no object of the
                sequence count for none. (The official code refuses those above the highest one.)
            truth: as `prediction`.
            void: pixels of this true number count neither for nor against any object.
        """
        self._measure(name, lambda: _objects(prediction, truth, void, self.bound))

    def merge(self, other: "DavisMeasure") -> None:
        """Add the frames of `other`, from another process. Raises ValueError when both saw the same frame."""
        ours, theirs = ((one.bound, one.every_frame, one.objects) for one in (self, other))
        if ours != theirs:
            raise ValueError("measures with different `bound`, `every_frame` or `objects` cannot be merged")
        for sequence, frames in other.frames.items():
            self._require_new(sequence, frames)
        for sequence, frames in other.frames.items():
            self._keep(sequence, frames)

    def reset(self) -> None:
        """Forget every frame."""
        self.frames = {}

    def compute(self) -> dict[str, float]:
        """Return `J_mean, J_recall, J_decay, F_mean, F_recall, F_decay, JF_mean, iou`: means over objects, in [0, 1].

        `JF_mean` is the mean of `J_mean` and `F_mean`, J&F of 2017. `iou` is `J_mean` under the name that the papers'
        tables use: the mean over sequences of the mean over frames, not the overlap of all pixels pooled. Sequences
        without a frame that counts, or without an object, are left out; if there are no others, the values are NaN.
        """
        return _mean([row for objects in self.per_object().values() for row in objects.values()])

    def per_sequence(self) -> dict[str, dict[str, Any]]:
        """Return, by sequence, the keys of :meth:`compute` and the lists `frames` (names), `J` and `F` that count.

        Of several objects, all are means over them.
        """
        result: dict[str, dict[str, Any]] = {}
        for sequence, objects in self.per_object().items():
            names, rows = self._counted(sequence), list(objects.values())
            lists = {key: _means(names, rows, key) if rows else [] for key in ("J", "F")}
            result[sequence] = {**_mean(rows), "frames": names, **lists}
        return result

    def per_object(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return the numbers of :meth:`per_sequence` of each object, by sequence and the object's number."""
        return {sequence: self._of_objects(sequence) for sequence in sorted(self.frames)}

    def _of_objects(self, sequence: str) -> dict[int, dict[str, Any]]:
        frames, names = self.frames[sequence], self._counted(sequence)
        result: dict[int, dict[str, Any]] = {}
        for number, begin in self._begins(sequence).items():
            since = [name for name in names if natural_order(name) >= natural_order(begin)]
            pairs = [frames[name].scores.get(number, (1.0, 1.0)) for name in since]
            region, boundary = ([pair[side] for pair in pairs] for side in (0, 1))
            numbers = (*statistics(region), *statistics(boundary))
            row = dict(zip(_KEYS, (*numbers, (numbers[0] + numbers[3]) / 2, numbers[0]), strict=True))
            result[number] = {**row, "frames": since, "J": region, "F": boundary}
        return result

    def late_objects(self) -> dict[str, list[int]]:
        """Return, by sequence, the objects that are in a true mask but not in the first one."""
        late = {name: sorted(set(_begins(frames)) - set(_first(frames).true)) for name, frames in self.frames.items()}
        return {name: numbers for name, numbers in sorted(late.items()) if numbers}

    def without_objects(self) -> list[str]:
        """Return the sequences that have no object to score."""
        return sorted(sequence for sequence in self.frames if not self._begins(sequence))

    def _begins(self, sequence: str) -> dict[int, str]:
        """Return the objects that are scored, and the frame that each is scored from."""
        frames = self.frames[sequence]
        begins = _begins(frames)
        return begins if self.objects == "all" else {number: begins[number] for number in _first(frames).true}

    def _counted(self, sequence: str) -> list[str]:
        frames = self.frames[sequence]
        names = sorted(frames, key=natural_order)
        return [name for name in (names if self.every_frame else names[1:-1]) if frames[name].known]

    def _measure(self, name: str, measure: Callable[[], Frame]) -> None:
        sequence, _, frame = name.rpartition("/")
        try:
            self._keep(sequence or ".", {frame: measure()})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _keep(self, sequence: str, frames: dict[str, Frame]) -> None:
        self._require_new(sequence, frames)
        self.frames.setdefault(sequence, {}).update(frames)

    def _require_new(self, sequence: str, frames: dict[str, Frame]) -> None:
        if twice := sorted(self.frames.get(sequence, {}).keys() & frames.keys()):
            raise ValueError(f"{sequence}/{twice[0]} was scored twice; names must be unique")


_KEYS = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "JF_mean", "iou")


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    rows = [row for row in rows if not math.isnan(row["J_mean"])]
    return {key: float(np.mean([row[key] for row in rows])) if rows else math.nan for key in _KEYS}


def _means(names: Sequence[str], rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return the mean over the objects that are scored on each frame; NaN if there is none yet."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        for name, value in zip(row["frames"], row[key], strict=True):
            values[name].append(value)
    return [float(np.mean(found)) if found else math.nan for found in values.values()]


def _first(frames: dict[str, Frame]) -> Frame:
    return frames[min(frames, key=natural_order)]


def _begins(frames: dict[str, Frame]) -> dict[int, str]:
    """Return the numbers of all true objects, and the first frame of each."""
    begins: dict[int, str] = {}
    for name in sorted(frames, key=natural_order):
        for number in frames[name].true:
            begins.setdefault(number, name)
    return dict(sorted(begins.items()))


def _object(prediction: Array, truth: Array, known: Array | None, bound: float) -> Frame:
    if known is None:
        return Frame((1,), {1: region_and_boundary(prediction, truth, bound)})
    ours, theirs = as_pair(prediction, truth)
    counts = as_numpy(known) != 0
    pair = region_and_boundary((ours != 0) & counts, (theirs != 0) & counts, bound)
    return Frame((1,), {1: pair}, bool(counts.any()))


def _objects(prediction: Array, truth: Array, void: int | None, bound: float) -> Frame:
    ours, theirs = as_pair(prediction, truth)
    ours = np.where(theirs == void, 0, ours) if void is not None else ours
    true, predicted = (_numbers(mask) - {0, void} for mask in (theirs, ours))
    scores = {number: region_and_boundary(ours == number, theirs == number, bound) for number in true | predicted}
    return Frame(tuple(sorted(true)), scores, void is None or bool((theirs != void).any()))


def _numbers(mask: np.ndarray) -> set[int]:
    if mask.dtype == np.uint8:  # many times faster than sorting
        return {*np.flatnonzero(np.bincount(mask.ravel())).tolist()}
    return {*np.unique(mask).tolist()}
