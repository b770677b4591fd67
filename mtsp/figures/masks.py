"""Draw masks over frames. Images are HW3 uint8, RGB."""

from collections.abc import Sequence

import cv2
import numpy as np

from mtsp.files.palettes import palette
from mtsp.types import IGNORE, Kind

_IGNORED = (224, 224, 192)  # the color of "void" in PASCAL VOC's palette


def background_class(kind: Kind, classes: Sequence[str]) -> int | None:
    """Return 0 if class 0 is background, as in videos and pairs and where its name says so; else return None."""
    return 0 if kind in ("video", "pairs") or "background" in "".join(classes[:1]).lower() else None


def overlay(
    frame: np.ndarray, mask: np.ndarray, *, background: int | None = 0, ignore: int = IGNORE, opacity: float = 0.5
) -> np.ndarray:
    """Return `frame` with `mask` drawn over it in the DAVIS palette, each class with a bright contour.

    Args:
        frame: HW3 uint8.
        mask: HW, class ids.
        background: class that is left uncolored, see :func:`background_class`; None colors every class.
        ignore: value of unknown pixels, which are drawn pale and without a contour.
        opacity: opacity of the colors: 0 shows only the frame and the contours, 1 hides the frame.
    """
    require_same_size(frame, mask)
    ids = mask.astype(np.uint16)
    colors = palette(max(256, int(ids.max(initial=0)) + 2))
    if background is None:
        colors = np.roll(colors, -1, axis=0)
    colors[ignore] = _IGNORED
    drawn = ids != background if background is not None else np.ones_like(ids, dtype=bool)
    image = frame.copy()
    image[drawn] = ((1 - opacity) * frame[drawn] + opacity * colors[ids[drawn]] + 0.5).astype(np.uint8)

    square = np.ones((3, 3), np.uint8)
    edge = drawn & (ids != ignore) & (cv2.dilate(ids, square) != cv2.erode(ids, square))
    bright = colors.astype(float) * 255 / np.maximum(colors.max(axis=1, keepdims=True), 1)
    image[edge] = bright[ids[edge]].astype(np.uint8)
    return image


def require_same_size(one: np.ndarray, other: np.ndarray) -> None:
    """Raise ValueError if two images differ in height or width."""
    if one.shape[:2] != other.shape[:2]:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (one, other))
        raise ValueError(f"images must have the same size, got {sizes} (width x height)")
