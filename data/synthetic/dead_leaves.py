"""Photo-like textures made by code: the dead leaves model of natural images.

Shapes that hide each other, with radii r of density r^-3, have the edges, the flat regions and the spectrum of photos
(Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001); their insides are shaded and textured.
"""

from pathlib import Path

import cv2
import numpy as np
from pydantic import Field

from data.files.images import write_image
from data.synthetic.textures import Contour, Palette, Pattern, draw_contour, draw_texture
from data.synthetic.writers import Progress, published_folder
from mtsp.config import Config

_PATTERNS: tuple[Pattern, ...] = ("clouds", "clouds", "clouds", "speckles", "cells", "stripes", "confetti")
_CONTOURS: tuple[Contour, ...] = ("ellipse", "polygon", "star", "blob", "blob")
_SHEETS = 6  # textures per image that the leaves are cut from


class DeadLeavesConfig(Config):
    """Config of the images of :func:`write_dead_leaves`."""

    images: int = Field(default=400, ge=1)
    height: int = Field(default=480, ge=64, le=4096)
    width: int = Field(default=640, ge=64, le=4096)
    leaves: tuple[int, int] = (150, 1500)
    """Lowest and highest number of shapes in an image; its logarithm is drawn uniformly, like that of `smallest`."""
    smallest: tuple[float, float] = (4.0, 24.0)
    """Range of the radius of an image's smallest shapes, in pixels; the largest have 0.45 of the shorter side."""
    seed: int = Field(default=0, ge=0)


def write_dead_leaves(config: DeadLeavesConfig, root: Path, *, progress: Progress | None = None) -> None:
    """Write images `0000.jpg` ... to the new folder `root`, for the `textures` of synthetic clips."""
    with published_folder(root) as folder:
        for index in range(config.images):
            write_image(
                folder / f"{index:04d}.jpg", draw_dead_leaves(config, np.random.default_rng([config.seed, index]))
            )
            if progress is not None:
                progress(index + 1, config.images)


def draw_dead_leaves(config: DeadLeavesConfig, rng: np.random.Generator) -> np.ndarray:
    """Return one image, HW3 uint8 RGB."""
    height, width = config.height, config.width
    sheets = [_draw_sheet(rng, height, width) for _ in range(_SHEETS)]
    image = sheets[0].copy()
    smallest, leaves = (np.exp(rng.uniform(*np.log(ends))) for ends in (config.smallest, config.leaves))
    near, far = smallest**-2, (0.45 * min(height, width)) ** -2
    radii = (near - rng.random(round(leaves)) * (near - far)) ** -0.5
    for radius in radii.tolist():
        _lay(image, rng, radius, sheets[rng.integers(_SHEETS)])
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))


def _draw_sheet(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    low = rng.uniform(0.05, 0.5)
    palette = Palette((0.0, rng.uniform(0.1, 0.6)), (low, low + rng.uniform(0.2, 0.5)))
    return draw_texture(rng, height, width, _PATTERNS[rng.integers(len(_PATTERNS))], palette)


def _lay(image: np.ndarray, rng: np.random.Generator, radius: float, sheet: np.ndarray) -> None:
    """Draw one leaf, cut from `sheet`, shaded and recolored, onto `image` in place."""
    height, width = image.shape[:2]
    contour = draw_contour(rng, _CONTOURS[rng.integers(len(_CONTOURS))], radius, points=48)
    turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(0, 360), 1.0)[:, :2]
    contour = contour * [1, rng.uniform(0.2, 1)] @ turn + rng.random(2) * [width, height]
    left, top = np.floor(contour.min(0)).astype(int) - 1
    right, bottom = np.ceil(contour.max(0)).astype(int) + 2
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return
    rows, columns = bottom - top, right - left
    cover = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(cover, [np.rint(16 * (contour - [left, top])).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    y, x = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    inside = sheet[y : y + rows, x : x + columns].astype(np.float32)
    contrast = rng.uniform(0.1, 1.0) ** 1.5
    base = inside.mean((0, 1)) * rng.uniform(0.6, 1.5) * rng.uniform(0.85, 1.15, 3) + rng.uniform(-20, 20)
    inside = base + contrast * (inside - inside.mean((0, 1)))
    light = 1 + rng.uniform(-0.3, 0.3, (2, 2)).astype(np.float32)
    inside *= cv2.resize(light, (columns, rows), interpolation=cv2.INTER_LINEAR)[..., None]
    alpha = cover[..., None].astype(np.float32) / 255
    patch = image[top:bottom, left:right]
    patch[:] = np.clip(patch + alpha * (inside - patch), 0, 255).astype(np.uint8)
