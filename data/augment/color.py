"""Change colors: one 3x4 matrix for all linear changes, then gamma, then noise."""

import math
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from mtsp.config import Config

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in gray (ITU-R BT.601, as in JPEG, PIL and torchvision)."""


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the lower end comes first: ({value[1]}, {value[0]})")
    return value


Interval = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ordered)]
"""Lower and upper end, neither negative."""

Factor = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)]
"""Lower and upper end of a factor, both above zero."""

Draw = Literal["uniform", "log-uniform", "log-normal"]
"""Distribution of a section's numbers.

Factors (lo, hi): uniform; uniform in the logarithm, so that halving is as likely as doubling; or normal in the
logarithm, with the ends one standard deviation from the mean. Spreads s: uniform in -s to s; with log-normal, normal
with standard deviation s.
"""


def draw_factor(rng: np.random.Generator, ends: tuple[float, float], draw: Draw) -> float:
    """Draw a number in or around (lo, hi)."""
    low, high = ends
    if draw == "uniform":
        return low + (high - low) * rng.random()
    low, high = math.log(low), math.log(high)
    if draw == "log-uniform":
        return math.exp(low + (high - low) * rng.random())
    return math.exp((low + high) / 2 + (high - low) / 2 * rng.standard_normal())


def draw_spread(rng: np.random.Generator, spread: float, draw: Draw) -> float:
    """Draw a number around zero."""
    return spread * (rng.standard_normal() if draw == "log-normal" else 2 * rng.random() - 1)


class ColorConfig(Config):
    """Config of the color changes. The defaults change nothing.

    Linear changes become one matrix and are clamped once at the end. torchvision and FlowNet round and clamp after each
    step, which differs where a step leaves [0, 1]. Contrast turns about middle gray, not about each image's mean, so
    that both frames of a pair change alike.
    """

    brightness: Factor = (1.0, 1.0)
    """Factor on all channels."""
    contrast: Interval = (1.0, 1.0)
    """Factor on the distance from middle gray, 0.5; 0: all gray. Always drawn uniformly, as it may be zero."""
    saturation: Interval = (1.0, 1.0)
    """Factor on the distance from each pixel's own gray; 0: black and white. Always drawn uniformly."""
    hue: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Spread in degrees of a rotation about the axis of grays in RGB: linear, unlike a shift of HSV's hue."""
    channels: Factor = (1.0, 1.0)
    """Factor on each channel, drawn for each channel."""
    shift: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of a number added to all channels, for values in [0, 1]; normal for every `draw`."""
    gamma: Factor = (1.0, 1.0)
    """Exponent of values in [0, 1] after the linear changes: above 1 darkens."""
    noise: Interval = (0.0, 0.0)
    """Standard deviation, for values in [0, 1], of normal noise added at the end, independent for each frame."""
    draw: Draw = "uniform"

    def sample(self, rng: np.random.Generator) -> "Color":
        """Return one change. Takes the same number of draws from `rng` for all settings."""
        brightness = draw_factor(rng, self.brightness, self.draw)
        contrast = draw_factor(rng, self.contrast, "uniform")
        saturation = draw_factor(rng, self.saturation, "uniform")
        hue = draw_spread(rng, self.hue, self.draw)
        channels = [draw_factor(rng, self.channels, self.draw) for _ in range(3)]
        shift = self.shift * rng.standard_normal()
        gamma = draw_factor(rng, self.gamma, self.draw)
        noise = draw_factor(rng, self.noise, "uniform")

        gray = np.tile(LUMA, (3, 1))
        linear = saturation * np.eye(3) + (1 - saturation) * gray
        linear = contrast * np.diag(channels) * brightness @ _hue(hue) @ linear
        offset = np.full(3, 0.5 * (1 - contrast) + shift)
        return Color(np.column_stack([linear, offset]), gamma, noise)


class Color(NamedTuple):
    """One change of color: clip(matrix @ (R, G, B, 1)) ** gamma, values in [0, 1], then noise."""

    matrix: np.ndarray  # 3x4 float64
    gamma: float = 1.0
    noise: float = 0.0  # standard deviation

    def after(self, other: "Color") -> "Color":
        """Return the change `other`, then this one: matrices and gammas multiply, variances of noise add."""
        linear = self.matrix[:, :3] @ other.matrix[:, :3]
        offset = self.matrix[:, :3] @ other.matrix[:, 3] + self.matrix[:, 3]
        noise = math.hypot(self.noise, other.noise)
        return Color(np.column_stack([linear, offset]), self.gamma * other.gamma, noise)

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return `image` (HW3 uint8) changed; `rng` is used for noise only."""
        if not np.array_equal(self.matrix, np.eye(3, 4)):
            image = cv2.transform(image, self.matrix * [1, 1, 1, 255])  # rounds and clamps once
        if self.gamma != 1:
            table = 255 * (np.arange(256) / 255) ** self.gamma
            image = cv2.LUT(image, np.round(table).astype(np.uint8))
        if self.noise > 0:
            noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(255 * self.noise)
            image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
        return image


def _hue(degrees: float) -> np.ndarray:
    """Return the 3x3 rotation about (1, 1, 1): grays stay, 120 degrees turn red to green (Rodrigues)."""
    if degrees == 0:
        return np.eye(3)
    axis = 1 / math.sqrt(3)
    cross = axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
