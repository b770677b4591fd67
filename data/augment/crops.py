"""Crops for classifiers: a random resized crop in training, a center crop at evaluation."""

import math

import cv2
import numpy as np

from data.augment.geometry import Size

TRIES = 10
"""Maximum number of draws of a random rectangle before a centered one is used, as in Inception and torchvision."""


def random_box(
    source: Size, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a random rectangle in an image of size `source`, in unrounded pixels.

    Its area, as a fraction of the image, is uniform in `area`, the logarithm of its width-to-height ratio is uniform in
    `aspect`, and its position is uniform. If none of ten draws fits into the image, the result is the largest centered
    rectangle with an allowed ratio. After Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015), section 6, as
    in torchvision.
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
    """Return the center crop of `image` (HW3 uint8), resized to `size`.

    The crop is the largest rectangle with the aspect ratio of `size`, its sides multiplied by `crop_pct`. This equals
    scaling the shorter side to size / crop_pct and cutting out the center, but resamples only once. It keeps the aspect
    ratio; slim's evaluation, which DSTL used, instead cuts both sides to `crop_pct` and stretches them to a square.
    """
    height, width = image.shape[:2]
    step = crop_pct * min(height / size[0], width / size[1])  # pixels of the image per pixel of the result
    h, w = max(1, round(step * size[0])), max(1, round(step * size[1]))
    top, left = (height - h) // 2, (width - w) // 2
    return scaled(image[top : top + h, left : left + w], size)


def scaled(image: np.ndarray, size: Size) -> np.ndarray:
    """Return `image` stretched to `size`, with area averaging to shrink and bilinear interpolation to enlarge."""
    height, width = image.shape[:2]
    how = cv2.INTER_AREA if size[0] * size[1] < height * width else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=how)
