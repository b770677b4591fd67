"""Changes of color: the formula, and what is drawn."""

import math

import numpy as np
import pytest

from data.augment.color import Color, ColorConfig
from mtsp.config import parse

Array = np.ndarray


def test_color_is_the_formula_rounded_once() -> None:
    # Contrast 1.5 about 0.5 after brightness 0.8: 1.5 * 0.8 x - 0.25, of 100 -> 120 - 63.75 = 56.25; 240 -> 224.25.
    color = ColorConfig(brightness=(0.8, 0.8), contrast=(1.5, 1.5)).sample(np.random.default_rng(0))
    image = np.array([[[100, 240, 10]]], np.uint8)
    assert color.apply(image, np.random.default_rng(0)).tolist() == [[[56, 224, 0]]]  # 10 -> -51.75, clamped


def test_saturation_zero_is_gray_by_luma() -> None:
    color = ColorConfig(saturation=(0.0, 0.0)).sample(np.random.default_rng(0))
    # 0.299 * 100 + 0.587 * 200 + 0.114 * 50 = 29.9 + 117.4 + 5.7
    assert color.apply(np.array([[[100, 200, 50]]], np.uint8), np.random.default_rng(0)).tolist() == [[[153] * 3]]


def test_a_third_of_a_turn_of_hue_takes_red_to_green_and_leaves_gray() -> None:
    from data.augment.color import _hue

    np.testing.assert_allclose(_hue(120) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(_hue(37) @ [1, 1, 1], [1, 1, 1], atol=1e-12)


def test_gamma_comes_after_the_matrix() -> None:
    half = Color(0.5 * np.eye(3, 4), gamma=2.0)
    # 200 / 2 = 100, then 255 * (100 / 255)^2 = 39.2; before, it would be 255 * (200 / 255)^2 / 2 = 78.4
    assert half.apply(np.full((1, 1, 3), 200, np.uint8), np.random.default_rng(0)).tolist() == [[[39, 39, 39]]]


def test_one_change_after_another_is_their_product() -> None:
    first = ColorConfig(brightness=(1.2, 1.2), hue=30.0).sample(np.random.default_rng(0))
    second = ColorConfig(contrast=(0.7, 0.7), shift=0.05).sample(np.random.default_rng(1))
    x = np.array([0.2, 0.5, 0.4])
    stepwise = second.matrix @ np.append(first.matrix @ np.append(x, 1), 1)
    np.testing.assert_allclose(second.after(first).matrix @ np.append(x, 1), stepwise)


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    # log of (0.5, 2): even between -0.693 and 0.693 has deviation 0.693 / sqrt(3); as one deviation either side 0.693.
    [("log-uniform", 0.0, math.log(2) / math.sqrt(3)), ("log-normal", 0.0, math.log(2))],
)
def test_factors_are_drawn_as_said(draw: str, mean: float, deviation: float) -> None:
    config = parse(ColorConfig, {"brightness": [0.5, 2.0], "draw": draw})
    rng = np.random.default_rng(0)
    logs = [math.log(config.sample(rng).matrix[0, 0]) for _ in range(2000)]
    assert np.mean(logs) == pytest.approx(mean, abs=4 * deviation / math.sqrt(2000))
    assert np.std(logs) == pytest.approx(deviation, rel=0.06)
