"""Warp images, masks and flow by affine maps; flow stays exact.

A map is a 3x3 float64 array on (x, y, 1). Coordinates are continuous: an image of W x H pixels is the rectangle
[0, W] x [0, H], and the pixel of row i, column j is the unit square centered on (j + 0.5, i + 0.5). So
mirroring is exactly x -> W - x, doubling the size is exactly x -> 2x, and neither shifts the image by half a pixel.
Maps are composed with `@`, the right one is applied first, and they always lead from the source image to the output.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

MOTION_EDGE = 1.0
"""Largest difference in x or y, in pixels, between the flows of four neighbors that move alike: see `warp_flow`."""

Size = tuple[int, int]
"""Height and width in pixels."""


def translate(x: float, y: float) -> np.ndarray:
    """Return the map that moves by `x`, `y` pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scale(x: float, y: float) -> np.ndarray:
    """Return the map that scales about the origin; a factor of -1 mirrors."""
    return np.diag([x, y, 1.0])


def rotate(degrees: float) -> np.ndarray:
    """Return the rotation about the origin: for positive angles from x to y, clockwise on the screen."""
    if degrees % 90 == 0:  # exact zeros and ones, where math.cos(math.pi / 2) is 6e-17
        cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][int(degrees // 90) % 4]
    else:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def resize(source: Size, size: Size) -> np.ndarray:
    """Return the map that stretches an image of size `source` to `size`."""
    return scale(size[1] / source[1], size[0] / source[0])


def largest_scale(affine: np.ndarray) -> float:
    """Return the factor by which the map enlarges the direction that it enlarges most; it is at least 0.001."""
    return max(float(np.linalg.svd(affine[:2, :2], compute_uv=False)[0]), 1e-3)


def covers(affine: np.ndarray, source: Size, size: Size) -> bool:
    """Return whether an output of `size` shows only the source image: all four corners lie inside it."""
    left, top, right, bottom = _seen(affine, size)
    slack = 1e-6  # rounding; far below what a pixel shows
    return min(left, top) >= -slack and right <= source[1] + slack and bottom <= source[0] + slack


def warp_image(image: np.ndarray, affine: np.ndarray, size: Size, fill: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """Return `image` (HW3 uint8) warped by `affine` to an output of `size`, with `fill` outside the image.

    The image is sampled bilinearly once. If the map shrinks to half or less, the image is first averaged over blocks of
    whole pixels (2x2 at half size, 3x3 at a third) to prevent aliasing; between half and full size it is not filtered.
    """
    source = image.shape[:2]
    block = min(int(1 / largest_scale(affine) + 1e-6), *source)
    # Repeat the border so that the outermost half pixel stays clean; if more is visible, it blends with `fill`.
    border = cv2.BORDER_REPLICATE if covers(affine, source, size) else cv2.BORDER_CONSTANT
    if block > 1:
        small = (source[0] // block, source[1] // block)
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
        affine = affine @ resize(small, source)
    left, top, right, bottom = (int(edge) for edge in np.clip(_seen(affine, size), -4, 1 << 20))
    left, top = min(max(left - 2, 0), image.shape[1] - 1), min(max(top - 2, 0), image.shape[0] - 1)
    image = image[top : max(bottom, top) + 3, left : max(right, left) + 3]  # the visible part and its neighbors
    affine = affine @ translate(left, top)
    # Warping four channels takes 0.33 ms, three channels 0.88 (to 400x400); both conversions together take 0.1.
    image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    moved = cv2.warpAffine(
        image, pixel_matrix(affine), size[::-1], flags=cv2.INTER_LINEAR, borderMode=border, borderValue=(*fill, 255)
    )
    return cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB)


def warp_mask(mask: np.ndarray, affine: np.ndarray, size: Size, fill: int) -> np.ndarray:
    """Return `mask` (HW uint8) warped by `affine` to `size`: nearest-neighbor sampling, `fill` outside the mask."""
    return cv2.warpAffine(mask, pixel_matrix(affine), size[::-1], flags=cv2.INTER_NEAREST, borderValue=(fill,) * 4)


def warp_flow(
    flow: np.ndarray, valid: np.ndarray | None, first: np.ndarray, second: np.ndarray, size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow between two warped frames, HW2 float32, and its validity, HW bool, both of `size`.

    A point p of frame 1 moves to q = A1 p, and its partner p + f(p) in frame 2 moves to A2 (p + f(p)). So the new flow
    at q is A2 (p + f(p)) - q with p = A1^-1 q: an affine function of q, which is computed exactly, plus the linear part
    of A2 applied to f(p). Only f is sampled.

    f is interpolated between four pixels if all are known and move alike (within `MOTION_EDGE`); otherwise the nearest
    pixel's flow is used, because the mean of two motions is neither of them. Compared with the analytic flow of a disc
    in front of a waving background, at 0.6 to 1 times the size, the mean error inside a motion is 0.0002 px, and 0.2 %
    of all pixels are wrong by over 0.5 px. Nearest-neighbor sampling everywhere (as in FlowNet2) gives 0.016 px and
    0.2 %, interpolation everywhere 0.0002 px and 0.9 %. Any `MOTION_EDGE` between 0.25 and 4 px gives the same result.

    Args:
        flow: HW2 float32, (dx, dy) in pixels of the source, finite everywhere.
        valid: HW bool, where flow is known; None: everywhere.
        first: map of frame 1, `A1`. Flow is stored on its pixels.
        second: map of frame 2, `A2`.
        size: height and width of the output.

    Returns:
        The flow and its validity. Where the nearest source pixel is unknown or outside the image, validity is False and
        flow is 0. Flow that leads out of frame 2 stays valid, as in the data sets.
    """
    centers, shape = pixel_matrix(first), size[::-1]
    known = np.ones(flow.shape[:2], np.uint8) if valid is None else valid.astype(np.uint8)
    valid_out = cv2.warpAffine(known, centers, shape, flags=cv2.INTER_NEAREST).view(bool)
    # In the grid of 2x2 blocks, half a pixel off the pixel grid, the nearest block is the one interpolation reads.
    blocks = pixel_matrix(first @ translate(-0.5, -0.5))
    planes = cv2.split(flow)  # OpenCV 5 samples one channel exactly, but two channels together in steps of 1/32 px
    alike = cv2.warpAffine(_blocks_alike(planes, known), blocks, shape, flags=cv2.INTER_NEAREST).view(bool)
    linear = second[:2, :2]
    residual = second @ np.linalg.inv(first) - np.eye(3) if second is not first else np.zeros((3, 3))
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    moved = []
    for plane in planes:
        sampled = cv2.warpAffine(plane, centers, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        nearest = cv2.warpAffine(plane, centers, shape, flags=cv2.INTER_NEAREST)
        moved.append(np.where(alike, sampled, nearest))
    out = cv2.transform(cv2.merge(moved), linear)
    for axis in (0, 1):
        if residual[axis].any():
            out[..., axis] += (residual[axis, 0] * x + residual[axis, 2] + residual[axis, 1] * y).astype(np.float32)
    out[~valid_out] = 0
    return out, valid_out


def pixel_matrix(affine: np.ndarray) -> np.ndarray:
    """Return the map in OpenCV's convention: 2x3, with pixel centers at whole numbers."""
    return (translate(-0.5, -0.5) @ affine @ translate(0.5, 0.5))[:2]


def _seen(affine: np.ndarray, size: Size) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the part of the source plane that an output of `size` shows."""
    height, width = size
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]], dtype=np.float64)
    x, y, _ = np.linalg.inv(affine) @ corners
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _blocks_alike(planes: Sequence[np.ndarray], known: np.ndarray) -> np.ndarray:
    """Return HW uint8, 1 at the lower right pixel of each 2x2 block whose pixels are all known and move alike."""
    square = np.ones((2, 2), np.uint8)
    alike = cv2.erode(known, square).view(bool)
    for plane in planes:
        alike &= cv2.dilate(plane, square) - cv2.erode(plane, square) <= MOTION_EDGE
    alike[0] = alike[:, 0] = False  # no complete block ends in the first row or column
    return alike.view(np.uint8)
