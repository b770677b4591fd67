"""Crops for classifiers: a random resized crop in training, a center crop at evaluation."""

import math

import cv2
import numpy as np

from data.augment.geometry import Size

TRIES = 10
"""Draws of a rectangle that fits the image before falling back to the center, as in Inception and torchvision."""


def random_box(
    source: Size, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a random rectangle in an image of `source`, in pixels, not rounded.

    Its fraction of the area is uniform in `area`, its width over height uniform in the logarithm in `aspect`, its
    position uniform. If none of ten draws fits, it is the largest centered rectangle with an allowed aspect. After
    Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015), section 6, as torchvision draws it.
    """
    height, width = source
    for _ in range(TRIES):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
        if w <= width and h <= height:
            return rng.uniform(0, width - w), rng.uniform(0, height - h), w, h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    return (width - w) / 2, (height - h) / 2, w, h


def center_crop(image: np.ndarray, size: Size, crop_pct: float) -> np.ndarray:
    """Return the center of `image` (HW3 uint8) as `size`: the largest part of that shape, its sides times `crop_pct`.

    The same as scaling the shorter side to size / crop_pct and cutting out the center, but resampled once. It keeps the
    aspect; slim's evaluation, which DSTL used, stretches the center `crop_pct` of both sides to the square instead.
    """
    height, width = image.shape[:2]
    step = crop_pct * min(height / size[0], width / size[1])  # pixels of the image per pixel of the result
    h, w = max(1, round(step * size[0])), max(1, round(step * size[1]))
    top, left = (height - h) // 2, (width - w) // 2
    return scaled(image[top : top + h, left : left + w], size)


def scaled(image: np.ndarray, size: Size) -> np.ndarray:
    """Return `image` stretched to `size`: averaged over areas where it shrinks, interpolated where it grows."""
    height, width = image.shape[:2]
    how = cv2.INTER_AREA if size[0] * size[1] < height * width else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=how)
