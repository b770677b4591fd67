"""The DAVIS metrics of videos: J and F for each object in each frame, and their statistics.

After Perazzi et al., CVPR 2016, section 4, for one object (see :mod:`mtsp.metrics.region_boundary`), and Pont-Tuset et
al., "The 2017 DAVIS Challenge on Video Object Segmentation" (arXiv:1704.00675), section 3, for several objects. Results
equal those of the official evaluation code (2016, and 2017 semi-supervised), with three departures:

- Decay is also correct for more than 256 frames, where the 8-bit frame indices of the official code wrap around.
- The objects of a sequence are those in the true mask of its first frame. The official code scores every number up to
  the highest one, so that a missing number scores 1.
- Void pixels are not counted. The official code treats them as background, except in its unsupervised task.

T, the temporal stability of 2016, is left out, since the paper does not specify how it matches shape contexts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtsp.metrics.kernels.jit import Array, as_numpy
from mtsp.metrics.region_boundary import BOUND, as_pair, region_and_boundary
from mtsp.text import natural_order


def statistics(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the mean, the recall and the decay of a sequence's values, one per frame; NaN without values.

    Recall is the fraction of values above 0.5. Decay is the mean of the first quarter minus the mean of the last one.
    The quarters of n frames end at round(linspace(1, n, 5)), and neighboring quarters share the frame between them.
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
    """Ids of the objects in the true mask."""
    scores: dict[int, tuple[float, float]]
    """J and F by object id, for the objects in the true or predicted mask. For any other object, both are 1."""
    known: bool = True
    """Whether the true mask has any known pixel; if not, the frame is not scored."""


class DavisMeasure:
    """J and F of all frames added so far, and their statistics by the rules of the DAVIS benchmark.

    The first and the last frame of a sequence, sorted by name, are not scored: semi-supervised methods get the mask of
    the first frame as input, and some methods compared in the paper left out the last frame. Therefore, add every frame
    of a sequence. Results for a data set are means over its objects, whatever the length of their sequences.

    Args:
        bound: tolerance of F, see :func:`mtsp.metrics.region_boundary.boundary_measure`.
        every_frame: score the first and the last frame, too, as in the unsupervised task of 2017.
        objects: `first` scores the objects in the first true mask of a sequence; `all` scores every object, from the
            first frame with the object in the true mask.
    """

    def __init__(
        self, bound: float = BOUND, *, every_frame: bool = False, objects: Literal["first", "all"] = "first"
    ) -> None:
        self.bound, self.every_frame, self.objects = bound, every_frame, objects
        self.frames: dict[str, dict[str, Frame]] = {}  # sequence -> frame name -> scores

    def update(self, name: str, prediction: Array, truth: Array, known: Array | None = None) -> None:
        """Add a frame with a single object.

        Args:
            name: "sequence/frame", or just "frame" for a frame of the sequence ".".
            prediction: HW, not 0 = object.
            truth: HW, not 0 = object.
            known: HW; pixels where it is false are ignored. If it is false everywhere, the frame is not scored.

        Raises:
            ValueError: the masks differ in size or are not HW, or the name was added before.
        """
        self._measure(name, lambda: _object(prediction, truth, known, self.bound))

    def update_objects(self, name: str, prediction: Array, truth: Array, void: int | None = 255) -> None:
        """Add a frame with several objects. Raises as :meth:`update`.

        Args:
            name: as for :meth:`update`.
            prediction: HW integers, the object id of each pixel, 0 = background. Ids of objects that the sequence does
                not have are not scored. (The official code refuses ids above the highest true one.)
            truth: HW integers, as `prediction`.
            void: id of unknown pixels in `truth`, which are ignored for all objects; None if there are none.
        """
        self._measure(name, lambda: _objects(prediction, truth, void, self.bound))

    def merge(self, other: "DavisMeasure") -> None:
        """Add the frames of `other`. Raises ValueError if both have the same frame, or their settings differ."""
        ours, theirs = ((one.bound, one.every_frame, one.objects) for one in (self, other))
        if ours != theirs:
            raise ValueError("measures with different `bound`, `every_frame` or `objects` cannot be merged")
        for sequence, frames in other.frames.items():
            self._require_new(sequence, frames)
        for sequence, frames in other.frames.items():
            self._keep(sequence, frames)

    def reset(self) -> None:
        """Start over without any frame."""
        self.frames = {}

    def compute(self) -> dict[str, float]:
        """Return `J_mean, J_recall, J_decay, F_mean, F_recall, F_decay, JF_mean, iou`: means over objects, in [0, 1].

        `JF_mean` is the mean of `J_mean` and `F_mean` (J&F of DAVIS 2017). `iou` equals `J_mean`; papers use this name
        in their tables. It averages over frames, then over sequences, and does not pool pixels. Sequences without a
        scored frame or without an object are left out; if none is left, all values are NaN.
        """
        return _mean([row for objects in self.per_object().values() for row in objects.values()])

    def per_sequence(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of each sequence: the keys of :meth:`compute`, and lists over the scored frames.

        The lists are `frames` (names), `J` and `F`. All values are means over the objects of the sequence.
        """
        result: dict[str, dict[str, Any]] = {}
        for sequence, objects in self.per_object().items():
            names, rows = self._counted(sequence), list(objects.values())
            lists = {key: _means(names, rows, key) if rows else [] for key in ("J", "F")}
            result[sequence] = {**_mean(rows), "frames": names, **lists}
        return result

    def per_object(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return the metrics of :meth:`per_sequence` for each object, by sequence and object id."""
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
        """Return, for each sequence with any, the ids of objects that are in a true mask but not in the first one."""
        late = {name: sorted(set(_begins(frames)) - set(_first(frames).true)) for name, frames in self.frames.items()}
        return {name: numbers for name, numbers in sorted(late.items()) if numbers}

    def without_objects(self) -> list[str]:
        """Return the names of the sequences without an object to score."""
        return sorted(sequence for sequence in self.frames if not self._begins(sequence))

    def _begins(self, sequence: str) -> dict[int, str]:
        """Return the first scored frame of each scored object."""
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
    """Return the mean over the objects scored in each frame; NaN for frames before the first object."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        for name, value in zip(row["frames"], row[key], strict=True):
            values[name].append(value)
    return [float(np.mean(found)) if found else math.nan for found in values.values()]


def _first(frames: dict[str, Frame]) -> Frame:
    return frames[min(frames, key=natural_order)]


def _begins(frames: dict[str, Frame]) -> dict[int, str]:
    """Return the first frame of each object in the true masks, by object id."""
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
