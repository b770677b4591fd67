"""Draw optical flow with the usual color wheel, and end-point errors as a color map. Images are HW3 uint8, RGB."""

import numpy as np

from mtsp.figures.masks import require_same_size
from mtsp.metrics.flow import KNOWN_FLOW

_PAPER = (255, 255, 255)

FULL_COLOR_PERCENTILE = 95
"""Percentile of the lengths of a flow that :func:`full_color_length` returns."""


def _wheel() -> np.ndarray:
    """Return the 55 colors of the wheel, from red through yellow, green, cyan, blue and magenta back to red."""
    corners = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0)]
    steps = [15, 6, 4, 11, 13, 6]  # finer where the eye tells more hues apart
    parts = []
    for start, end, count in zip(corners, corners[1:], steps, strict=False):
        way = np.arange(count)[:, None] / count
        parts.append(np.floor(255 * way) * np.sign(np.subtract(end, start)) + start)
    return np.concatenate(parts)


def flow_to_color(flow: np.ndarray, radius: float | None = None) -> np.ndarray:
    """Return an image of `flow`: the hue shows the direction of a vector, the saturation its length.

    Motion to the right is red, down yellow, left cyan-blue and up violet; no motion is white. After Baker et al., "A
    Database and Evaluation Methodology for Optical Flow", IJCV 2011, and its published code.

    Args:
        flow: HW2, (dx, dy) in pixels, y downwards. Vectors that are not finite or have a component beyond 1e6, as in
            Middlebury's files, are unknown and drawn black.
        radius: length of the vectors drawn in full color, in pixels; longer vectors are darker. Use the same radius for
            figures to be compared. None uses the length of the longest known vector.
    """
    known = known_flow(flow)
    flow = np.where(known[..., None], flow, 0).astype(np.float64)
    length = np.hypot(flow[..., 0], flow[..., 1])
    if radius is None:
        radius = float(length.max(initial=0))
    length /= max(radius, 1e-9)

    wheel = _wheel() / 255
    turn = np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi  # -1..1, right is -1
    place = (turn + 1) / 2 * (len(wheel) - 1)
    low = np.floor(place).astype(int)
    part = (place - low)[..., None]
    hue = (1 - part) * wheel[low] + part * wheel[(low + 1) % len(wheel)]
    shade = length[..., None]
    color = np.where(shade <= 1, 1 - shade * (1 - hue), 0.75 * hue)
    return np.where(known[..., None], np.floor(255 * color), 0).astype(np.uint8)


def full_color_length(flow: np.ndarray) -> float:
    """Return the length to draw in full color, in pixels: the 95th percentile of the known lengths, at least 1.

    With the longest length instead, one small fast object would make everything else pale. Give predictions the length
    of the true flow, so that their colors can be compared.
    """
    lengths = np.hypot(flow[..., 0], flow[..., 1])[known_flow(flow)]
    return max(1.0, float(np.percentile(lengths, FULL_COLOR_PERCENTILE)) if lengths.size else 0.0)


def color_wheel(size: int) -> np.ndarray:
    """Return a legend for :func:`flow_to_color`, size x size: each pixel shows the vector from the center to itself."""
    axis = np.linspace(-1, 1, size)
    flow = np.stack(np.meshgrid(axis, axis), axis=-1)
    image = flow_to_color(flow, radius=1)
    image[np.hypot(flow[..., 0], flow[..., 1]) > 1] = _PAPER
    return image


ERROR_COLORS = np.array(
    [
        (49, 54, 149), (69, 117, 180), (116, 173, 209), (171, 217, 233), (224, 243, 248),
        (254, 224, 144), (253, 174, 97), (244, 109, 67), (215, 48, 39), (165, 0, 38),
    ],
    np.uint8,
)  # fmt: skip


def error_map(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Return an image of the end-point errors in ten colors: blue for correct vectors, red for KITTI outliers (Fl).

    Errors are divided by the outlier threshold, the larger of 3 pixels and 5 % of the true length. The color changes at
    1/16, 1/8, ..., 1 (blue to red), ..., 16 times the threshold. Pixels with unknown truth are black.

    Args:
        prediction: HW2, in pixels.
        truth: HW2, in pixels; vectors that are not finite or have a component beyond 1e6 are unknown.
        valid: HW bool, where `truth` is known; None if it is known everywhere.
    """
    require_same_size(prediction, truth)
    known = known_flow(truth) if valid is None else known_flow(truth) & valid
    truth = np.where(known[..., None], truth, 0)
    error = np.hypot(*np.moveaxis(prediction - truth, -1, 0))
    bound = np.maximum(3, 0.05 * np.hypot(truth[..., 0], truth[..., 1]))
    with np.errstate(invalid="ignore"):
        shade = np.searchsorted(2.0 ** np.arange(-4, 5), error / bound, side="left")
    return np.where(known[..., None], ERROR_COLORS[shade], 0).astype(np.uint8)


def known_flow(flow: np.ndarray) -> np.ndarray:
    """Return a mask of known vectors, HW bool: both components are finite and at most 1e6 pixels."""
    return np.all(np.abs(flow) <= KNOWN_FLOW, axis=-1)  # False for NaN
