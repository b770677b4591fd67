"""Optical flow errors, accumulated as sums over images, batches and processes.

One pass over prediction, ground truth and validity computes all metrics:

- the end-point error (EPE, the length of prediction - truth, in pixels of the arrays' resolution), over all known
  pixels and by true speed (in the bins of the Sintel benchmark);
- the fraction of pixels with an end-point error above 1, 3 and 5 px;
- Fl, the fraction of outliers as KITTI 2015 defines them (an error above 3 px and above 5 % of the true length);
- the angular error of Barron, Fleet and Beauchemin ("Performance of Optical Flow Techniques", IJCV 1994, section 4.1):
  the angle between the predicted and the true (dx, dy, 1), in degrees.

Fractions are in [0, 1], where KITTI's tables print percentages.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtsp.metrics.checks import for_device, keep_rows, require_numbers
from mtsp.metrics.kernels.exact_sum import ExactSums
from mtsp.metrics.kernels.flow_forms import host_sums, torch_sums
from mtsp.metrics.kernels.flow_loops import KNOWN_FLOW as KNOWN_FLOW
from mtsp.metrics.kernels.flow_loops import SUMS
from mtsp.metrics.kernels.jit import Array, as_numpy, on_host


def flow_sums(prediction: Array, truth: Array, valid: Array | None = None, *, angular: bool = True) -> np.ndarray:
    """Return the 12 sums that `SUMS` names for each image, B x 12 float64.

    Accuracy: the errors of a pixel are computed in the precision of the input (at least float32), so a pixel at the
    edge of a bin may fall into the neighboring bin of a float64 computation. The angle of a float32 vector is off by
    0.0003 degrees at 500 px, and a float64 error above 1e154 px becomes infinite. The compiled loop sums blocks of 512
    pixels in the precision of the input and the block sums in float64. The relative error of an image's sum is usually
    1e-8 (angles: 1e-7), and at most 512 x 2^-24 = 3.1e-5. Pixel counts are exact. The sums of an image do not depend on
    its batch, its memory layout or the number of threads.

    CPU arrays with any strides are read without a copy, and a transposed BHW2 array as fast as a B2HW one. These are
    copied: the less precise of two arrays of different types, half precision, integers, foreign byte order, and a
    `valid` with more than one byte per pixel.

    Args:
        prediction: B2HW or 2HW, (dx, dy) in pixels.
        truth: shaped as `prediction`. Vectors that are NaN, infinite or unknown (see :data:`KNOWN_FLOW`) are left out.
        valid: BHW or HW, 0 or False where the truth is unknown; if omitted, the truth is known everywhere.
        angular: whether to sum angular errors, which take half of the computing time. If False, the sum of angles is
            NaN for an image with known pixels.

    Raises:
        ValueError: the shapes do not match, or an array does not hold real numbers (see
            :func:`~mtsp.metrics.checks.require_numbers`).
        TypeError: an argument is neither a numpy array nor a torch tensor.
    """
    prediction, truth, valid = _checked(prediction, truth, valid)
    if not on_host(prediction):
        return torch_sums(prediction, for_device(truth), for_device(valid), angular)
    return host_sums(as_numpy(prediction), as_numpy(truth), None if valid is None else as_numpy(valid), angular)


class FlowErrors:
    """Flow errors over all known pixels of all images, independent of their order and of the number of processes.

    `epe` and `aae` pool the pixels of all images. `epe_per_image` and `aae_per_image`, which some papers report,
    average each image first and then average over images. A known pixel with a prediction that is not finite is left
    out of all averages and counted in `nan_predictions`. Trust the other values only if `nan_predictions` is 0.

    Args:
        angular: whether to compute angular errors; if False, they are NaN.
    """

    def __init__(self, angular: bool = True) -> None:
        self.angular = angular
        self.sums = ExactSums(len(SUMS))
        self.image_means = ExactSums(3)  # over images with a known pixel: [EPE, angular error, 1]
        self.by_name: dict[str, np.ndarray] = {}

    def update(
        self, prediction: Array, truth: Array, valid: Array | None = None, names: str | Sequence[str] | None = None
    ) -> None:
        """Add one image or a batch of images; the arrays are those of :func:`flow_sums`.

        Args:
            names: names of the images, for :meth:`per_image`; None leaves these images out of it.

        Raises:
            ValueError: as :func:`flow_sums`; the number of names is wrong, or a name was added before.
        """
        rows = flow_sums(prediction, truth, valid, angular=self.angular)
        if names is not None:
            keep_rows(self.by_name, names, rows, "flow")
        self._add(rows)

    def merge(self, other: "FlowErrors") -> None:
        """Add the images of `other`. Raises ValueError if both have an image name, or `angular` differs."""
        if self.angular != other.angular:
            raise ValueError("flow errors with and without angles cannot be merged; give both the same `angular`")
        keep_rows(self.by_name, other.by_name, other.by_name.values(), "flow")
        self.sums.merge(other.sums)
        self.image_means.merge(other.image_means)

    def reset(self) -> None:
        """Start over without any image."""
        self.__init__(self.angular)

    def compute(self) -> dict[str, float]:
        """Return all flow metrics. An average over no pixels, as of an empty speed bin, is NaN and not 0.

        Returns:
            `epe`, `epe_0_10`, `epe_10_40`, `epe_40_plus`, `epe_per_image` in px; `out_1px`, `out_3px`, `out_5px`,
            `fl_all` as fractions in [0, 1]; `aae`, `aae_per_image` in degrees; `pixels`: number of known pixels with a
            finite prediction; `images`: number of images with such a pixel; `nan_predictions`: number of known pixels
            without a finite prediction.
        """
        of = dict(zip(SUMS, self.sums.values(), strict=True))
        image_epe, image_aae, images = self.image_means.values()
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
            "aae": _mean(of["angle"], pixels),
            "epe_per_image": _mean(image_epe, images),
            "aae_per_image": _mean(image_aae, images),
            "pixels": int(pixels),
            "images": int(images),
            "nan_predictions": int(of["lost"]),
        }

    def per_image(self) -> dict[str, dict[str, float]]:
        """Return the metrics of :meth:`compute` for each named image, sorted by name."""
        return self.grouped(lambda name: name)

    def grouped(self, key: Callable[[str], str]) -> dict[str, dict[str, float]]:
        """Return the metrics of :meth:`compute` for each group of named images with the same `key(name)`, sorted."""
        groups: dict[str, FlowErrors] = {}
        for name, row in sorted(self.by_name.items(), key=lambda item: (key(item[0]), item[0])):
            groups.setdefault(key(name), FlowErrors(self.angular))._add(row[None])
        return {value: group.compute() for value, group in groups.items()}

    def _add(self, rows: np.ndarray) -> None:
        self.sums.add(rows.T.tolist())
        images = [dict(zip(SUMS, row, strict=True)) for row in rows[rows[:, SUMS.index("pixels")] > 0].tolist()]
        epe = [(of["error_slow"] + of["error_mid"] + of["error_fast"]) / of["pixels"] for of in images]
        self.image_means.add([epe, [of["angle"] / of["pixels"] for of in images], [len(images)]])


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def _checked(prediction: Array, truth: Array, valid: Array | None) -> tuple[Any, Any, Any]:
    """Check the three arrays and return them with a batch dimension."""
    require_numbers(prediction=prediction, truth=truth, **({} if valid is None else {"valid": valid}))
    shapes = [tuple(array.shape) for array in (prediction, truth)]
    if shapes[0] != shapes[1] or len(shapes[0]) not in (3, 4) or shapes[0][-3] != 2:
        hint = "; transpose BHW2, which copies nothing" if shapes[0][-1:] == shapes[1][-1:] == (2,) else ""
        raise ValueError(
            f"flow prediction {shapes[0]} and truth {shapes[1]}: expected the same B2HW or 2HW of both{hint}"
        )
    if any("complex" in str(array.dtype) for array in (prediction, truth)):
        raise ValueError(f"flow has types {prediction.dtype} and {truth.dtype}; expected real numbers")
    if valid is not None and "complex" in str(valid.dtype):
        raise ValueError(f"valid has type {valid.dtype}; expected bool or whole numbers, 0 where flow is unknown")
    plane = shapes[0][:-3] + shapes[0][-2:]
    if valid is not None and tuple(valid.shape) != plane:
        raise ValueError(f"valid is {tuple(valid.shape)}, expected {plane} for flow {shapes[0]}")
    if len(shapes[0]) == 4:
        return prediction, truth, valid
    return prediction[None], truth[None], None if valid is None else valid[None]
