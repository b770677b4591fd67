"""Render flat layers that move and bend, with exact masks, flow and occlusion.

Every layer has a map from its own coordinates to each frame, with an exact inverse. The flow at a pixel is the position
of the same layer point in the other frame, minus the pixel's position. It is exact in both directions.

Letters: T frames, H and W image height and width; positions are (x, y), integers at pixel centers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np


class Clip(NamedTuple):
    """A rendered clip. Flow and occlusion of step t lie between frames t and t + 1."""

    frames: np.ndarray  # TxHxWx3 uint8, RGB
    masks: np.ndarray  # TxHxW uint8, 1 where a foreground object covers more than half of the pixel
    layers: np.ndarray  # TxHxW uint8, index of the visible layer; 0 is the background, higher indices are nearer
    flow: np.ndarray  # (T-1)xHxWx2 float32, pixels, on the grid of frame t: t -> t+1
    backward_flow: np.ndarray  # (T-1)xHxWx2 float32, pixels, on the grid of frame t+1: t+1 -> t
    occlusion: np.ndarray  # (T-1)xHxW bool, pixels of frame t that are hidden in frame t+1 or outside it
    backward_occlusion: np.ndarray  # (T-1)xHxW bool, pixels of frame t+1 that are hidden in frame t or outside it


@dataclass(frozen=True)
class Layer:
    """One layer: its appearance, and the positions of its points in every frame.

    First a wave moves a point, given in pixels from the layer's center: x by `amplitude[0] * sin(frequency[0] * y +
    phase[t, 0])`, then y in the same way by the *moved* x. Subtracting the two steps in reverse order is the exact
    inverse at any amplitude. Then an affine map leads to the image.
    """

    texture: np.ndarray  # hxwx3 uint8, RGB; the layer's center is the texture's center
    coverage: np.ndarray | None  # hxw uint8, 255 inside; None: covers all, texture mirrored at its edges
    contour: np.ndarray  # N2 float, layer coordinates, encloses the covered part; unused if coverage is None
    to_image: np.ndarray  # Tx2x3 float64, from the waved layer to the image, pixels
    amplitude: np.ndarray  # 2 float, pixels; zeros if the layer does not bend
    frequency: np.ndarray  # 2 float, radians per pixel
    phase: np.ndarray  # Tx2 float, radians
    foreground: bool

    @property
    def rigid(self) -> bool:
        """Whether the layer never bends."""
        return not self.amplitude.any()

    def project(self, x: np.ndarray, y: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image position of layer points in frame t."""
        if not self.rigid:
            x = x + _sine(self.amplitude[0], self.frequency[0], y, self.phase[t, 0])
            y = y + _sine(self.amplitude[1], self.frequency[1], x, self.phase[t, 1])
        return _affine(self.to_image[t], x, y)

    def unproject(self, x: np.ndarray, y: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the layer points at these image positions in frame t: the inverse of :meth:`project`."""
        x, y = _affine(cv2.invertAffineTransform(self.to_image[t]), x, y)
        if not self.rigid:
            y = y - _sine(self.amplitude[1], self.frequency[1], x, self.phase[t, 1])
            x = x - _sine(self.amplitude[0], self.frequency[0], y, self.phase[t, 0])
        return x, y

    def window(self, t: int, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of frame t that the layer may cover; they may be empty."""
        if self.coverage is None:
            return slice(0, height), slice(0, width)
        x, y = self.project(self.contour[:, 0], self.contour[:, 1], t)
        pad = 3  # margin for antialiasing and for bending between two contour points
        top, bottom = np.clip([np.floor(y.min()) - pad, np.ceil(y.max()) + pad + 1], 0, height).astype(int)
        left, right = np.clip([np.floor(x.min()) - pad, np.ceil(x.max()) + pad + 1], 0, width).astype(int)
        return slice(top, bottom), slice(left, right)


def render(layers: Sequence[Layer], height: int, width: int) -> Clip:
    """Render the clip of `layers`, which begin with the background and end with the nearest layer.

    A pixel belongs to the nearest layer that covers more than half of it; colors blend at edges, flow does not.
    A pixel is occluded if the new position of its point, rounded to a pixel, is outside the image or belongs to a
    nearer layer. All other results are computed by closed formulas in float32, with errors of about 1e-4 pixels.
    """
    steps = len(layers[0].to_image)
    painted = [_paint(layers, t, height, width) for t in range(steps)]
    frames = np.stack([frame for frame, _ in painted])
    owners = np.stack([owner for _, owner in painted])
    shape = (steps - 1, height, width)
    flow, backward_flow = np.empty((*shape, 2), np.float32), np.empty((*shape, 2), np.float32)
    occlusion, backward_occlusion = np.empty(shape, bool), np.empty(shape, bool)
    for t in range(steps - 1):
        flow[t] = _flow(layers, owners[t], t, t + 1)
        occlusion[t] = _hidden(owners[t], owners[t + 1], flow[t])
        backward_flow[t] = _flow(layers, owners[t + 1], t + 1, t)
        backward_occlusion[t] = _hidden(owners[t + 1], owners[t], backward_flow[t])
    masks = np.array([layer.foreground for layer in layers], np.uint8)[owners]
    return Clip(frames, masks, owners, flow, backward_flow, occlusion, backward_occlusion)


def _paint(layers: Sequence[Layer], t: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frame t and the index of the layer that owns each pixel."""
    frame, owner = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    for index, layer in enumerate(layers):
        rows, columns = layer.window(t, height, width)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        color, alpha = _sample(layer, t, rows, columns)
        if alpha is None:
            frame[rows, columns], owner[rows, columns] = color, index
            continue
        weight = cv2.merge([alpha] * 3)
        below = cv2.multiply(frame[rows, columns], 255 - weight, scale=1 / 255)
        frame[rows, columns] = cv2.add(below, cv2.multiply(color, weight, scale=1 / 255))
        owner[rows, columns][alpha > 127] = index
    return frame, owner


def _sample(layer: Layer, t: int, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the color (hw3 uint8) and coverage (hw uint8; None: all) of `layer` in this part of frame t."""
    size = (columns.stop - columns.start, rows.stop - rows.start)
    center_x, center_y = (layer.texture.shape[1] - 1) / 2, (layer.texture.shape[0] - 1) / 2
    if layer.rigid:
        # Map the window's pixels directly to the texture's pixels.
        inverse = cv2.invertAffineTransform(layer.to_image[t])
        inverse[:, 2] += inverse[:, :2] @ [columns.start, rows.start] + [center_x, center_y]

        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

        def warp(image: np.ndarray, border: int) -> np.ndarray:
            return cv2.warpAffine(image, inverse, size, flags=flags, borderMode=border)
    else:
        x, y = layer.unproject(*_grid(rows, columns), t)
        x, y = x + np.float32(center_x), y + np.float32(center_y)

        def warp(image: np.ndarray, border: int) -> np.ndarray:
            return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)

    color = warp(layer.texture, cv2.BORDER_REFLECT_101)
    return color, None if layer.coverage is None else warp(layer.coverage, cv2.BORDER_CONSTANT)


def _flow(layers: Sequence[Layer], owner: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return the motion of every pixel of frame `start` to frame `end`, HW2 float32."""
    height, width = owner.shape
    flow = np.empty((height, width, 2), np.float32)
    for index, layer in enumerate(layers):
        rows, columns = layer.window(start, height, width)
        x, y = _grid(rows, columns)
        if not x.size:
            continue
        if layer.rigid:
            # Use one matrix for the motion, so that a pure translation gives the same value everywhere.
            step = layer.to_image[end] @ np.vstack([cv2.invertAffineTransform(layer.to_image[start]), [0, 0, 1]])
            step[:, :2] -= np.eye(2)
            step[np.abs(step) < 1e-12] = 0
            moved = _affine(step, x, y)
        else:
            new_x, new_y = layer.project(*layer.unproject(x, y, start), end)
            moved = (new_x - x, new_y - y)
        owned = owner[rows, columns] == index
        for axis in (0, 1):
            np.copyto(flow[rows, columns, axis], moved[axis], where=owned)
    return flow


def _hidden(owner: np.ndarray, next_owner: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return which pixels arrive outside the image or under a nearer layer, HW bool."""
    height, width = owner.shape
    x, y = _grid(slice(0, height), slice(0, width))
    column = np.rint(flow[..., 0] + x).astype(np.int32)
    row = np.rint(flow[..., 1] + y).astype(np.int32)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    np.clip(column, 0, width - 1, out=column)
    np.clip(row, 0, height - 1, out=row)
    return outside | (next_owner[row, column] > owner)


def _grid(rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1w) and y (h1) of the pixels, float32; they broadcast."""
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None]
    return x, np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]


def _affine(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (a, b, c), (d, e, f) = matrix.astype(x.dtype)
    return a * x + (b * y + c), d * x + (e * y + f)


def _sine(amplitude: float, frequency: float, along: np.ndarray, phase: float) -> np.ndarray:
    kind = along.dtype.type
    return kind(amplitude) * np.sin(kind(frequency) * along + kind(phase))
