"""Textures and contours of synthetic objects and backgrounds: procedural, or crops of photos.

A procedural texture is a gray pattern (clouds, stripes, cells, ...) colored by a random palette with steps, which make
sharp edges. Fine grain is added everywhere, since optical flow is only defined where there is structure.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from data.files.images import IMAGE_SUFFIXES, read_image
from data.files.listing import folders_below, is_image

Pattern = Literal["clouds", "stripes", "checks", "cells", "speckles", "confetti"]
Contour = Literal["ellipse", "polygon", "star", "blob"]


class Palette(NamedTuple):
    """Ranges from which the colors of a texture are drawn, all in [0, 1]."""

    saturation: tuple[float, float]
    brightness: tuple[float, float]
    hue: tuple[float, float] = (0.0, 1.0)


def draw_texture(rng: np.random.Generator, height: int, width: int, pattern: Pattern, palette: Palette) -> np.ndarray:
    """Return a random texture, HW3 uint8 RGB."""
    field = _PATTERNS[pattern](rng, height, width)
    color = cv2.LUT(cv2.merge([_to_bytes(field)] * 3), _lookup(rng, palette)[None])
    return _with_grain(rng, color, rng.uniform(6, 24))


def draw_photo(
    rng: np.random.Generator,
    height: int,
    width: int,
    photos: tuple[Path, ...],
    whole: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return a random crop of a random photo, mirrored and recolored at random, HW3 uint8 RGB.

    The size of the crop is between half of the largest crop that fits into the photo and that crop, so that small
    objects show parts of things. With `whole`, the photo has the scale of such a crop of this height and width.
    """
    photo = read_photo(photos[rng.integers(len(photos))])
    fit = min(photo.shape[0] / height, photo.shape[1] / width)
    if whole is not None:
        fit = min(fit, photo.shape[0] / whole[0], photo.shape[1] / whole[1])
    scale = fit * rng.uniform(0.5, 1.0)
    rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
    top = rng.integers(photo.shape[0] - rows + 1)
    left = rng.integers(photo.shape[1] - columns + 1)
    crop = photo[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    shrinks = rows > height
    crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    levels = np.arange(256, dtype=np.float32)[:, None] * rng.uniform(0.7, 1.3, 3) + rng.uniform(-20, 20)
    return cv2.LUT(crop, np.clip(levels, 0, 255).astype(np.uint8)[None])


def find_photos(folder: Path) -> tuple[Path, ...]:
    """Return the images in `folder` and below, sorted. Raises FileNotFoundError if there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to read textures from")
    photos = sorted(path for place in folders_below(folder) for path in place.iterdir() if is_image(path))
    if not photos:
        raise FileNotFoundError(f"no image in {folder}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return tuple(photos)


@lru_cache(maxsize=256)
def read_photo(path: Path) -> np.ndarray:
    """Return the photo at `path`, HW3 uint8 RGB, at most 640 pixels on its longer side. Raises DataError."""
    photo = read_image(path)
    shrink = 640 / max(photo.shape[:2])  # the 256 photos in the cache take at most 240 MB
    if shrink < 1:
        photo = cv2.resize(photo, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    return photo


def draw_contour(rng: np.random.Generator, kind: Contour, radius: float, points: int = 96) -> np.ndarray:
    """Return a random closed contour around the origin, N2 float (x, y) in pixels, within `radius`.

    ellipse: any aspect down to 0.35. polygon: three to seven straight sides, not always convex. star: a smooth outline
    with pronounced arms. blob: a smooth outline of a few low harmonics.
    """
    if kind == "polygon":
        corners = int(rng.integers(3, 8))
        angle = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners
        reach = radius * rng.uniform(0.55, 1.0, corners)
        sides = np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
        along = np.linspace(0, 1, points // corners, endpoint=False)[None, :, None]
        return (sides[:, None] * (1 - along) + np.roll(sides, -1, axis=0)[:, None] * along).reshape(-1, 2)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    if kind == "ellipse":
        minor = rng.uniform(0.35, 1.0)
        return radius * np.stack([np.cos(angle), minor * np.sin(angle)], axis=1)
    reach = np.ones(points)
    if kind == "star":
        reach += rng.uniform(0.2, 0.5) * np.cos(rng.integers(3, 7) * angle + rng.uniform(0, 2 * np.pi))
    for harmonic in range(2, 6):
        reach += rng.normal(0, 0.25 / harmonic) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    reach = np.maximum(reach, 0.15)
    return (radius / reach.max()) * np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)


def _clouds(rng: np.random.Generator, height: int, width: int, coarsest: int = 64, decay: float = 0.6) -> np.ndarray:
    """Return octaves of smooth noise; `decay` is the weight of each octave relative to the coarser one before it."""
    field = np.zeros((height, width), np.float32)
    weight, step = 1.0, coarsest
    while step >= 2:
        grid = rng.random((height // step + 3, width // step + 3), dtype=np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, step = weight * decay, step // 2
    return field


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, _ = _rotated_grid(rng, height, width)
    bend = _clouds(rng, height, width, coarsest=64, decay=0.3) * rng.uniform(0, 3)
    return np.sin(x * (2 * np.pi / rng.uniform(6, 40)) + bend)


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _rotated_grid(rng, height, width)
    across, down = 2 * np.pi / rng.uniform(10, 48, 2)
    steepness = rng.uniform(1, 12)  # 12: squares with hard edges
    return np.tanh(steepness * np.sin(x * across) * np.sin(y * down)) + 0.3 * _clouds(rng, height, width)


def _cells(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return stained glass: every pixel has the random value of the nearest of some random points."""
    count = max(4, int(height * width / rng.uniform(8, 32) ** 2))
    empty = np.ones((height, width), np.uint8)
    empty[rng.integers(height, size=count), rng.integers(width, size=count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    values = rng.random(int(labels.max()) + 1, dtype=np.float32)
    return values[np.asarray(labels, np.int64)] + distance * np.float32(rng.uniform(-0.01, 0.03))


def _speckles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = _clouds(rng, height, width, coarsest=int(2 ** rng.integers(2, 5)), decay=0.5)
    return np.tanh(rng.uniform(4, 16) * (noise - np.float32(noise.mean()))) + 0.2 * _clouds(rng, height, width)


def _confetti(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return random ellipses and bars over clouds."""
    field = _to_bytes(_clouds(rng, height, width, decay=0.4))
    count = int(np.clip(height * width / rng.uniform(300, 1200), 4, 150))
    places = np.stack([rng.integers(width, size=count), rng.integers(height, size=count)], axis=1)
    sizes = rng.integers(2, max(4, min(height, width) // 8), size=(count, 2))
    angles, values = rng.uniform(0, 180, count), rng.integers(256, size=count)
    drawn = (array.tolist() for array in (places, sizes, angles, values))
    for place, size, angle, value in zip(*drawn, strict=True):
        cv2.ellipse(field, place, size, angle, 0, 360, value, thickness=-1, lineType=cv2.LINE_AA)
    return field.astype(np.float32)


_PATTERNS: dict[Pattern, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "clouds": _clouds,
    "stripes": _stripes,
    "checks": _checks,
    "cells": _cells,
    "speckles": _speckles,
    "confetti": _confetti,
}


def _rotated_grid(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _to_bytes(field: np.ndarray) -> np.ndarray:
    return cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX, dtype=cv2.CV_8U)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _lookup(rng: np.random.Generator, palette: Palette) -> np.ndarray:
    """Return 256 colors, 256x3 uint8, between three to six anchors, with steps in half of the draws."""
    anchors = int(rng.integers(3, 7))
    hue = rng.uniform(*palette.hue) + rng.normal(0, 0.12, anchors)
    saturation, brightness = rng.uniform(*palette.saturation, anchors), rng.uniform(*palette.brightness, anchors)
    hsv = np.stack([360 * (hue % 1.0), saturation, brightness], axis=1)
    colors = 255 * cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    position = np.linspace(0, anchors - 1, 256)
    if rng.random() < 0.5:
        middle = np.floor(position) + 0.5
        position = middle + np.clip((position - middle) * rng.uniform(2, 8), -0.5, 0.5)
    table = np.stack([np.interp(position, np.arange(anchors), colors[:, channel]) for channel in range(3)], axis=1)
    return table.astype(np.uint8)


def _with_grain(rng: np.random.Generator, color: np.ndarray, strength: float) -> np.ndarray:
    """Add gray grain of `strength` gray levels at scales of two to eight pixels, and a smooth change of light."""
    height, width = color.shape[:2]
    grain = strength * (_clouds(rng, height, width, coarsest=8, decay=0.9) - 1.3)
    light = rng.uniform(0.7, 1.15, (2, 2)).astype(np.float32)
    grain += 128 * (cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR) - 1)
    return cv2.add(color, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
