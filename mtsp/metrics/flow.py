"""Optical flow errors as sums that add up over images, batches and processes.

One pass over prediction, truth and validity gives every number: the end-point error (EPE, the length of
prediction - truth, in pixels of the given resolution) over all known pixels and by the speed of the truth (the bins of
the Sintel benchmark), the share of errors above 1, 3 and 5 px, and Fl, the outlier of KITTI 2015: an error above 3 px
and above 5 % of the true length. Shares are fractions in [0, 1], where KITTI's tables print percent.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mtsp.metrics.native import Array, as_numpy, compiled, frozen, in_threads, on_host, threads

KNOWN_FLOW = 1e6
"""A flow component of more pixels than this stands for "unknown" (this many is still known). Middlebury's code says
1e9 and its files 1.7e9; no true vector is near either."""

SUMS = ("pixels", "lost", "slow", "fast", "error_slow", "error_mid", "error_fast", "over_1", "over_3", "over_5", "fl")
"""What is summed: known pixels with a finite prediction; known pixels without one; pixels with a true length below
10 px, and of 40 px or more; the errors of the three speed bins, in px; pixels with an error above 1, 3, 5 px; Fl."""

_ROWS_PER_BLOCK = 48  # numpy form: the temporaries of 48 rows of 1024 pixels stay in the second-level cache


def flow_sums(prediction: Array, truth: Array, valid: Array | None = None) -> np.ndarray:
    """Return the sums named in `SUMS` of each image, B x 11 float64.

    Lengths are compared and errors computed in the precision of the input (float32 rows, added up in float64), so a
    pixel on the edge of a bin may fall to the other side of it than in float64.

    Args:
        prediction: B2HW or 2HW, (dx, dy) in pixels; any strides (a transposed BHW2 is read where it lies).
        truth: as `prediction`. NaN, infinite and unknown (see :data:`KNOWN_FLOW`) vectors are left out.
        valid: BHW or HW, 0 or False where the truth is unknown; all known without it.

    Raises:
        ValueError: the shapes do not fit together.
    """
    prediction, truth, valid = _checked(prediction, truth, valid)
    if not on_host(prediction):
        return _torch_sums(prediction, truth, valid)
    return _host_sums(as_numpy(prediction), as_numpy(truth), None if valid is None else as_numpy(valid))


class FlowErrors:
    """Flow errors over every known pixel of every image seen; the averages are named.

    `epe` pools pixels; `epe_per_image` is the mean of the images' own means, which some papers report and which
    differs where images have unequal numbers of known pixels. A known pixel whose prediction is not finite has no
    error: it is in no average and is counted in `nan_predictions`, which must be 0 for the others to mean anything.
    """

    def __init__(self) -> None:
        self.sums = np.zeros(len(SUMS))
        self.image_means = np.zeros(2)  # [sum of the images' EPE, images with a known pixel]
        self.by_name: dict[str, np.ndarray] = {}

    def update(
        self, prediction: Array, truth: Array, valid: Array | None = None, names: str | Sequence[str] | None = None
    ) -> None:
        """Add one image or a batch; arguments as for :func:`flow_sums`.

        Args:
            names: of each image; with it the image's own numbers are kept, see :meth:`per_image`.

        Raises:
            ValueError: shapes or number of names do not fit, or a name was added before.
        """
        rows = flow_sums(prediction, truth, valid)
        names = [names] if isinstance(names, str) else names
        if names is not None:
            if len(names) != len(rows):
                raise ValueError(f"{len(names)} names for {len(rows)} images")
            self._keep(dict(zip(names, rows, strict=True)), len(names))
        self._add(rows)

    def merge(self, other: "FlowErrors") -> None:
        """Add what `other` has seen: another process's images. Raises ValueError when both saw the same name."""
        self._keep(other.by_name, len(other.by_name))
        self.sums += other.sums
        self.image_means += other.image_means

    def reset(self) -> None:
        """Forget everything seen."""
        self.__init__()

    def compute(self) -> dict[str, float]:
        """Return the averages. One over no pixel (an absent speed bin) is NaN, never 0.

        Returns:
            `epe`, `epe_0_10`, `epe_10_40`, `epe_40_plus`, `epe_per_image` in px; `out_1px`, `out_3px`, `out_5px`,
            `fl_all` as fractions in [0, 1]; the counts `pixels`, `images` and `nan_predictions`.
        """
        of = dict(zip(SUMS, self.sums.tolist(), strict=True))
        pixels = of["pixels"]
        return {
            "epe": _mean(of["error_slow"] + of["error_mid"] + of["error_fast"], pixels),
            "epe_0_10": _mean(of["error_slow"], of["slow"]),
            "epe_10_40": _mean(of["error_mid"], pixels - of["slow"] - of["fast"]),
            "epe_40_plus": _mean(of["error_fast"], of["fast"]),
            "out_1px": _mean(of["over_1"], pixels),
            "out_3px": _mean(of["over_3"], pixels),
            "out_5px": _mean(of["over_5"], pixels),
            "fl_all": _mean(of["fl"], pixels),
            "epe_per_image": _mean(float(self.image_means[0]), float(self.image_means[1])),
            "pixels": int(pixels),
            "images": int(self.image_means[1]),
            "nan_predictions": int(of["lost"]),
        }

    def per_image(self) -> dict[str, dict[str, float]]:
        """Return :meth:`compute` of each named image, by name, in the order of names."""
        return {name: group.compute() for name, group in self.grouped(lambda name: name).items()}

    def grouped(self, key: Callable[[str], str]) -> dict[str, "FlowErrors"]:
        """Return the named images as one `FlowErrors` for each value of `key(name)`, in the order of values."""
        groups: dict[str, FlowErrors] = {}
        for name, row in sorted(self.by_name.items(), key=lambda item: (key(item[0]), item[0])):
            group = groups.setdefault(key(name), FlowErrors())
            group._keep({name: row}, 1)
            group._add(row[None])
        return groups

    def _keep(self, rows: dict[str, np.ndarray], expected: int) -> None:
        twice = sorted(self.by_name.keys() & rows.keys())
        if twice or len(rows) != expected:
            raise ValueError(f"flow of {twice[0] if twice else 'an image'} was scored twice; names must be unique")
        self.by_name.update(rows)

    def _add(self, rows: np.ndarray) -> None:
        self.sums += rows.sum(axis=0)
        seen = rows[rows[:, 0] > 0]
        self.image_means += [float((seen[:, 4:7].sum(axis=1) / seen[:, 0]).sum()), len(seen)]


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def _checked(prediction: Array, truth: Array, valid: Array | None) -> tuple[Any, Any, Any]:
    """Return all three with a batch dimension."""
    shapes = [tuple(array.shape) for array in (prediction, truth)]
    if shapes[0] != shapes[1] or len(shapes[0]) not in (3, 4) or shapes[0][-3] != 2:
        raise ValueError(f"flow prediction {shapes[0]} and truth {shapes[1]}: expected the same B2HW or 2HW of both")
    plane = shapes[0][:-3] + shapes[0][-2:]
    if valid is not None and tuple(valid.shape) != plane:
        raise ValueError(f"valid is {tuple(valid.shape)}, expected {plane} for flow {shapes[0]}")
    if len(shapes[0]) == 4:
        return prediction, truth, valid
    return prediction[None], truth[None], None if valid is None else valid[None]


def _host_sums(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    kind = np.float32 if np.result_type(prediction, truth, np.float32).itemsize == 4 else np.float64
    prediction, truth = prediction.astype(kind, copy=False), truth.astype(kind, copy=False)
    if valid is not None and valid.dtype != np.bool_:
        valid = valid != 0
    code = _kernel()
    known = frozen(np.empty((1, 0), np.bool_))

    def add(block: tuple[int, slice]) -> np.ndarray:
        image, rows = block
        ours, theirs = prediction[image, :, rows], truth[image, :, rows]
        mask = None if valid is None else valid[image, rows]
        if code is None:
            return _numpy_rows(ours, theirs, mask)
        sums = np.zeros(len(SUMS))
        mask = known if mask is None else frozen(mask)
        code(frozen(ours[0]), frozen(ours[1]), frozen(theirs[0]), frozen(theirs[1]), mask, sums)
        return sums

    images, _, height, width = prediction.shape
    result = np.zeros((images, len(SUMS)))
    if not width:
        return result
    blocks = list(_blocks(images, height, 1 << 30 if code else _ROWS_PER_BLOCK))
    for (image, _), sums in zip(blocks, in_threads(add, blocks), strict=True):
        result[image] += sums
    return result


def _blocks(images: int, height: int, most: int) -> Iterator[tuple[int, slice]]:
    """Cut every image into bands of at most `most` rows, and few images into at least a band for each thread."""
    rows = max(1, min(most, height if images >= 2 * threads() else -(-height * images // (2 * threads()))))
    for image in range(images):
        for top in range(0, height, rows):
            yield image, slice(top, min(top + rows, height))


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    # Sums may be reordered, which is what makes the loop vector code; NaN and infinity must keep their meaning.
    return compiled(_add_rows, fastmath={"reassoc", "contract", "nsz"})


def _add_rows(  # pragma: no cover, runs as machine code
    pu: np.ndarray, pv: np.ndarray, tu: np.ndarray, tv: np.ndarray, valid: np.ndarray, sums: np.ndarray
) -> None:
    """Add HW planes of prediction and truth to `sums`; `valid` of size 0 means known everywhere.

    Written so that LLVM makes vector code of it (ten times faster): 32-bit counts, which numba widens unless told not
    to at each step, selections instead of branches, and rows taken out of the planes before the inner loop.
    """
    kind, count = pu.dtype.type, np.int32
    nothing, limit, infinity = kind(0), kind(KNOWN_FLOW), kind(np.inf)
    masked = valid.size > 0
    height, width = pu.shape
    for y in range(height):
        pixels, known_pixels, slow, fast = count(0), count(0), count(0), count(0)
        over_1, over_3, over_5, fl = count(0), count(0), count(0), count(0)
        error_slow, error_mid, error_fast = nothing, nothing, nothing
        row_pu, row_pv, row_tu, row_tv, row_valid = pu[y], pv[y], tu[y], tv[y], valid[y if masked else 0]
        for x in range(width):
            a, b = row_tu[x], row_tv[x]
            c, d = row_pu[x], row_pv[x]
            known = (abs(a) <= limit) & (abs(b) <= limit)
            if masked:
                known = known & row_valid[x]
            used = known & (abs(c) < infinity) & (abs(d) < infinity)
            speed = a * a + b * b
            square = (c - a) * (c - a) + (d - b) * (d - b)
            error = math.sqrt(square if used else nothing)
            is_slow = used & (speed < kind(100))
            is_mid = used & (speed >= kind(100)) & (speed < kind(1600))
            is_fast = used & (speed >= kind(1600))
            known_pixels = count(known_pixels + count(known))
            pixels = count(pixels + count(used))
            slow = count(slow + count(is_slow))
            fast = count(fast + count(is_fast))
            error_slow += error if is_slow else nothing
            error_mid += error if is_mid else nothing
            error_fast += error if is_fast else nothing
            over_1 = count(over_1 + count(error > kind(1)))
            over_3 = count(over_3 + count(error > kind(3)))
            over_5 = count(over_5 + count(error > kind(5)))
            fl = count(fl + count((error > kind(3)) & (kind(400) * error * error > speed)))
        sums[0] += pixels
        sums[1] += known_pixels - pixels
        sums[2] += slow
        sums[3] += fast
        sums[4] += error_slow
        sums[5] += error_mid
        sums[6] += error_fast
        sums[7] += over_1
        sums[8] += over_3
        sums[9] += over_5
        sums[10] += fl


def _numpy_rows(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Return the sums of one 2HW block, without boolean indexing, which costs more than the arithmetic."""
    known = (np.abs(truth) <= KNOWN_FLOW).all(axis=0)
    if valid is not None:
        known &= valid
    finite = np.isfinite(prediction).all(axis=0)
    used = known & finite
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.square(prediction - truth).sum(axis=0)
        speed = np.where(known, np.square(truth).sum(axis=0), 0)
    error = np.sqrt(np.where(used, square, 0))
    slow, fast = speed < 100, speed >= 1600
    error_slow, error_fast = np.where(slow, error, 0), np.where(fast, error, 0)
    error_mid = np.where(slow | fast, 0, error)
    outlier = (error > 3) & (400 * np.square(error) > speed)
    counts = [known & ~finite, used & slow, used & fast]
    return np.array(
        [np.count_nonzero(used), *map(np.count_nonzero, counts)]
        + [bin_.sum(dtype=np.float64) for bin_ in (error_slow, error_mid, error_fast)]
        + [np.count_nonzero(error > limit) for limit in (1, 3, 5)]
        + [np.count_nonzero(outlier)],
        dtype=np.float64,
    )


def _torch_sums(prediction: Any, truth: Any, valid: Any) -> np.ndarray:
    """Return the sums of B2HW tensors, computed where the prediction lies; only 11 numbers an image leave it."""
    import torch

    prediction, truth = prediction.detach(), torch.as_tensor(truth, device=prediction.device)
    kind = torch.promote_types(torch.promote_types(prediction.dtype, truth.dtype), torch.float32)
    prediction, truth = prediction.to(kind), truth.to(kind)
    known = (truth.abs() <= KNOWN_FLOW).all(dim=1)
    if valid is not None:
        known &= torch.as_tensor(valid, device=prediction.device) != 0
    finite = torch.isfinite(prediction).all(dim=1)
    used = known & finite
    speed = torch.where(known, truth.square().sum(dim=1), 0)
    error = torch.where(used, (prediction - truth).square().sum(dim=1), 0).sqrt()
    slow, fast = speed < 100, speed >= 1600
    terms = [used, known & ~finite, used & slow, used & fast]
    terms += [torch.where(bin_, error, 0) for bin_ in (slow, ~(slow | fast), fast)]
    terms += [error > 1, error > 3, error > 5, (error > 3) & (400 * error.square() > speed)]
    return torch.stack([term.sum(dim=(1, 2), dtype=torch.float64) for term in terms], dim=1).cpu().numpy()
