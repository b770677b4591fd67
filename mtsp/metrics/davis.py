"""The DAVIS measures of a video's masks: region similarity J, boundary accuracy F, and their statistics.

After Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016,
section 4, with the definitions of the official 2016 and 2017 evaluation code, whose numbers these are to the last
digit. One departure: the decay of a sequence of more than 256 frames, where the official code's 8-bit frame indices
wrap around. Masks are binary: whatever is not 0 is the object.

Masks are packed to one bit a pixel, 64 pixels a word, and the tolerance of F is a dilation of words.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtsp.metrics.native import Array, as_numpy, compiled

BOUND = 0.008
"""How far apart matching boundaries may lie, as a fraction of the image diagonal: 8 pixels at 480x854."""


def region_similarity(prediction: Array, truth: Array) -> float:
    """Return J, the area shared by two HW masks over the area of both: intersection over union; 1 if both are empty."""
    ours, theirs, _ = _pair(prediction, truth)
    return _overlap(ours, theirs)


def boundary_measure(prediction: Array, truth: Array, bound: float = BOUND) -> float:
    """Return F, the harmonic mean of the precision and recall of the boundary pixels of two HW masks.

    A pixel is on the boundary if it differs from its right, lower or lower-right neighbor. It is matched if the other
    mask has a boundary pixel within a disk. Two masks without boundary match (1), one without does not (0).

    Args:
        prediction: HW, not 0 = object.
        truth: HW, not 0 = object.
        bound: the disk's radius: a fraction of the image diagonal, rounded up to pixels; from 1 on, pixels.
    """
    ours, theirs, width = _pair(prediction, truth)
    return _boundary(ours, theirs, width, _radius(len(ours), width, bound))


def region_and_boundary(prediction: Array, truth: Array, bound: float = BOUND) -> tuple[float, float]:
    """Return J and F of two HW masks, packed once for both."""
    ours, theirs, width = _pair(prediction, truth)
    return _overlap(ours, theirs), _boundary(ours, theirs, width, _radius(len(ours), width, bound))


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


class DavisMeasure:
    """J and F of every frame seen, and their statistics by the benchmark's rules.

    The first and the last frame of a sequence, in the order of their names, do not count: the first is given to
    semi-supervised methods, and some compared methods left out the last. So every frame of a sequence is to be added.
    The value of a data set is the mean over its sequences, however long; frames of all processes are merged first.
    """

    def __init__(self, bound: float = BOUND) -> None:
        self.bound = bound
        self.frames: dict[str, dict[str, tuple[float, float]]] = {}  # sequence -> frame -> (J, F)

    def update(self, name: str, prediction: Array, truth: Array) -> None:
        """Add the frame `name`, "sequence/frame" or "frame" of a sequence called "."; HW masks, not 0 = object.

        Raises:
            ValueError: the masks differ in size or are not HW, or the name was added before.
        """
        sequence, _, frame = name.rpartition("/")
        try:
            values = region_and_boundary(prediction, truth, self.bound)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._keep(sequence or ".", {frame: values})

    def merge(self, other: "DavisMeasure") -> None:
        """Add what `other` has seen: another process's frames. Raises ValueError when both saw the same frame."""
        for sequence, frames in other.frames.items():
            self._keep(sequence, frames)

    def reset(self) -> None:
        """Forget every frame."""
        self.frames = {}

    def compute(self) -> dict[str, float]:
        """Return `J_mean, J_recall, J_decay, F_mean, F_recall, F_decay` and `iou`: means over sequences, in [0, 1].

        `iou` is `J_mean` under the name that the papers' tables use: the mean over sequences of the mean over frames,
        not the overlap of all pixels pooled. Sequences of fewer than three frames have no frame that counts and are
        left out; if there are no others, the values are NaN.
        """
        rows = [row for row in self._statistics().values() if not math.isnan(row["J_mean"])]
        if not rows:
            return dict.fromkeys(_KEYS, math.nan)
        return {key: float(np.mean([row[key] for row in rows])) for key in _KEYS}

    def per_sequence(self) -> dict[str, dict[str, Any]]:
        """Return, by sequence, the keys of :meth:`compute` and the lists `frames` (names), `J` and `F` that count."""
        result: dict[str, dict[str, Any]] = {}
        for sequence, row in self._statistics().items():
            names, values = self._counted(sequence)
            result[sequence] = {**row, "frames": names, "J": values[:, 0].tolist(), "F": values[:, 1].tolist()}
        return result

    def _statistics(self) -> dict[str, dict[str, float]]:
        result: dict[str, dict[str, float]] = {}
        for sequence in sorted(self.frames):
            values = self._counted(sequence)[1]
            region, boundary = statistics(values[:, 0]), statistics(values[:, 1])
            result[sequence] = dict(zip(_KEYS, (*region, *boundary, region[0]), strict=True))
        return result

    def _counted(self, sequence: str) -> tuple[list[str], np.ndarray]:
        frames = self.frames[sequence]
        names = sorted(frames, key=lambda name: (len(name), name))[1:-1]  # frame 9 before frame 10, padded or not
        return names, np.array([frames[name] for name in names], dtype=np.float64).reshape(-1, 2)

    def _keep(self, sequence: str, frames: dict[str, tuple[float, float]]) -> None:
        seen = self.frames.setdefault(sequence, {})
        twice = sorted(seen.keys() & frames.keys())
        if twice:
            raise ValueError(f"{sequence}/{twice[0]} was scored twice; names must be unique")
        seen.update(frames)


_KEYS = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay", "iou")


def _pair(prediction: Array, truth: Array) -> tuple[np.ndarray, np.ndarray, int]:
    """Return both masks packed, and their width."""
    ours, theirs = as_numpy(prediction), as_numpy(truth)
    if ours.shape != theirs.shape or ours.ndim != 2:
        sizes = f"the predicted mask is {_size(ours)}, the true one {_size(theirs)}"
        raise ValueError(f"{sizes}; they must be HW and of the same size")
    if np.issubdtype(ours.dtype, np.inexact) or np.issubdtype(theirs.dtype, np.inexact):
        raise ValueError(f"masks of type {ours.dtype} and {theirs.dtype}; scores must be cut at a threshold first")
    return _packed(ours), _packed(theirs), ours.shape[1]


def _size(mask: np.ndarray) -> str:
    return "x".join(map(str, mask.shape)) or "a single number"


def _packed(mask: np.ndarray) -> np.ndarray:
    """Return H x words uint64, pixel x of a row in bit x % 64 of word x // 64, with at least one bit to spare."""
    if mask.dtype not in (np.bool_, np.uint8):
        mask = mask != 0
    bits = np.packbits(mask, axis=1, bitorder="little")
    words = np.zeros((mask.shape[0], (mask.shape[1] // 64 + 1) * 8), np.uint8)
    words[:, : bits.shape[1]] = bits
    return words.view("<u8").astype(np.uint64, copy=False)


def _count(words: np.ndarray) -> int:
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> float:
    union = _count(ours | theirs)
    return _count(ours & theirs) / union if union else 1.0


def _radius(height: int, width: int, bound: float) -> int:
    return math.ceil(bound if bound >= 1 else bound * math.hypot(height, width))


def _boundary(ours: np.ndarray, theirs: np.ndarray, width: int, radius: int) -> float:
    ours, theirs = _edges(ours, width), _edges(theirs, width)
    our_count, their_count = _count(ours), _count(theirs)
    if not our_count or not their_count:
        return float(our_count == their_count)
    precision = _count(ours & _dilated(theirs, radius)) / our_count
    recall = _count(theirs & _dilated(ours, radius)) / their_count
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _edges(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the boundary of a packed mask, packed. Beyond the last row and column the mask is taken to go on."""
    if not mask.size or not width:
        return mask
    last, bit = divmod(width - 1, 64)
    mask = mask.copy()
    end = mask[:, last] >> np.uint64(bit) & np.uint64(1)
    mask[:, width // 64] |= end << np.uint64(width % 64)
    below = np.concatenate([mask[1:], mask[-1:]])
    edges = (mask ^ _left(mask)) | (mask ^ below) | (mask ^ _left(below))
    edges[:, width // 64] &= np.uint64((1 << width % 64) - 1)
    edges[:, width // 64 + 1 :] = 0
    return edges


def _left(words: np.ndarray) -> np.ndarray:
    """Return the pixel to the right of each, one word row after the other; nothing to the right of the last word."""
    shifted = words >> np.uint64(1)
    shifted[:, :-1] |= words[:, 1:] << np.uint64(63)
    return shifted


def _disk(radius: int) -> np.ndarray:
    """Return how far a disk reaches sideways, 0..radius rows from its center: x*x + y*y <= radius**2."""
    return np.array([math.isqrt(radius * radius - y * y) for y in range(radius + 1)], dtype=np.int64)


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    return compiled(_spread)


def _dilated(words: np.ndarray, radius: int) -> np.ndarray:
    """Return packed boundaries grown by a disk. Rows and words out of reach are skipped."""
    rows, columns = np.flatnonzero(words.any(axis=1)), np.flatnonzero(words.any(axis=0))
    reach = radius // 64 + 1
    top, bottom = max(0, rows[0] - radius), rows[-1] + 1 + radius
    left, right = max(0, columns[0] - reach), columns[-1] + 1 + reach
    result = np.zeros_like(words)
    part = np.ascontiguousarray(words[top:bottom, left:right])
    grown = np.zeros_like(part)
    (_kernel() or _spread_numpy)(part, _disk(radius), grown)
    result[top:bottom, left:right] = grown
    return result


def _spread(words: np.ndarray, disk: np.ndarray, grown: np.ndarray) -> None:  # pragma: no cover, runs as machine code
    """Or the disk around every pixel of `words` into `grown`.

    Each row is widened by one pixel a time; at every width it is added to the rows at which the disk is that wide.
    """
    height, width = words.shape
    one, top = np.uint64(1), np.uint64(63)
    wide, before = np.empty(width, np.uint64), np.empty(width + 2, np.uint64)
    for y in range(height):
        some = np.uint64(0)
        for x in range(width):
            some |= words[y, x]
            wide[x] = words[y, x]
        if some == 0:
            continue
        before[0], before[width + 1] = 0, 0
        distance = disk.size - 1
        for reach in range(disk[0] + 1):
            if reach > 0:
                for x in range(width):
                    before[x + 1] = wide[x]
                for x in range(width):
                    here = before[x + 1]
                    wide[x] = here | here << one | here >> one | before[x] >> top | before[x + 2] << top
            while distance >= 0 and disk[distance] == reach:
                if y + distance < height:
                    for x in range(width):
                        grown[y + distance, x] |= wide[x]
                if distance > 0 and y - distance >= 0:
                    for x in range(width):
                        grown[y - distance, x] |= wide[x]
                distance -= 1


def _spread_numpy(words: np.ndarray, disk: np.ndarray, grown: np.ndarray) -> None:
    """As :func:`_spread`, all rows at once."""
    height, wide, distance = len(words), words, len(disk) - 1
    one, top = np.uint64(1), np.uint64(63)
    for reach in range(disk[0] + 1):
        if reach:
            wider = wide | wide << one | wide >> one
            wider[:, 1:] |= wide[:, :-1] >> top
            wider[:, :-1] |= wide[:, 1:] << top
            wide = wider
        while distance >= 0 and disk[distance] == reach:
            if distance < height:
                grown[distance:] |= wide[: height - distance]
                grown[: height - distance] |= wide[distance:]
            distance -= 1
