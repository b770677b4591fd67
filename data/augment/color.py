"""Change colors: apply one 3x4 matrix for all linear changes, then gamma, then noise."""

import math
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from mtsp.config import Config

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in the gray value (ITU-R BT.601, as in JPEG, PIL and torchvision)."""


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the lower end comes first; write ({value[1]}, {value[0]})")
    return value


Interval = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ordered)]
"""Lower and upper end of a range; neither is negative."""

Factor = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)]
"""Lower and upper end of the range of a factor, both above zero."""

Draw = Literal["uniform", "log-uniform", "log-normal"]
"""Distribution of the random values of a config section.

A factor with range (lo, hi) is drawn uniformly; uniformly in the logarithm, so that halving is as likely as doubling;
or normally in the logarithm, with lo and hi one standard deviation from the mean. A value with spread s is drawn
uniformly from -s to s, or with log-normal from a normal distribution with standard deviation s.
"""


def draw_factor(rng: np.random.Generator, ends: tuple[float, float], draw: Draw) -> float:
    """Draw a factor from the range `ends`; a log-normal factor may fall outside the range."""
    low, high = ends
    if draw == "uniform":
        return low + (high - low) * rng.random()
    low, high = math.log(low), math.log(high)
    if draw == "log-uniform":
        return math.exp(low + (high - low) * rng.random())
    return math.exp((low + high) / 2 + (high - low) / 2 * rng.standard_normal())


def draw_spread(rng: np.random.Generator, spread: float, draw: Draw) -> float:
    """Draw a value around zero with the given spread."""
    return spread * (rng.standard_normal() if draw == "log-normal" else 2 * rng.random() - 1)


class ColorConfig(Config):
    """Config of the color changes. The defaults change nothing.

    All linear changes are combined into one matrix, and the result is clamped once. torchvision and FlowNet round and
    clamp after each step, which gives other colors where a step leaves [0, 1]. Contrast is changed around middle gray,
    not around each image's mean, so that both frames of a pair change in the same way.
    """

    brightness: Factor = (1.0, 1.0)
    """Factor on all channels."""
    contrast: Interval = (1.0, 1.0)
    """Contrast: factor on the distance from middle gray, 0.5; 0: all gray. Always drawn uniformly, as it may be 0."""
    saturation: Interval = (1.0, 1.0)
    """Saturation: factor on the distance from the pixel's gray value; 0: black and white. Always drawn uniformly."""
    hue: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Spread of the rotation about the gray axis of RGB, in degrees. It is linear, unlike a hue shift in HSV."""
    channels: Factor = (1.0, 1.0)
    """Factor on each channel, drawn independently per channel."""
    shift: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the brightness added to all channels, for values in [0, 1]; normal for every `draw`."""
    gamma: Factor = (1.0, 1.0)
    """Exponent applied to values in [0, 1] after the linear changes; exponents above 1 darken."""
    noise: Interval = (0.0, 0.0)
    """Standard deviation of normal noise for values in [0, 1], added at the end, independently for each frame."""
    draw: Draw = "uniform"

    def sample(self, rng: np.random.Generator) -> "Color":
        """Draw one color change. The number of draws from `rng` is the same for all configs."""
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
    """One color change: clip(matrix @ (R, G, B, 1)) ** gamma, values in [0, 1], then noise."""

    matrix: np.ndarray  # 3x4 float64
    gamma: float = 1.0
    noise: float = 0.0  # standard deviation

    def after(self, other: "Color") -> "Color":
        """Return the color change that applies `other` first and then this one.

        Matrices and gammas are multiplied, variances of the noise are added.
        """
        linear = self.matrix[:, :3] @ other.matrix[:, :3]
        offset = self.matrix[:, :3] @ other.matrix[:, 3] + self.matrix[:, 3]
        noise = math.hypot(self.noise, other.noise)
        return Color(np.column_stack([linear, offset]), self.gamma * other.gamma, noise)

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return `image` (HW3 uint8) with changed colors; `rng` is used for noise only."""
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
    """Return the 3x3 rotation about (1, 1, 1): it keeps grays; 120 degrees turn red into green (Rodrigues)."""
    if degrees == 0:
        return np.eye(3)
    axis = 1 / math.sqrt(3)
    cross = axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
