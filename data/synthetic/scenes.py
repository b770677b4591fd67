"""Synthetic scenes in which the class of a thing depends on the whole image, the cue that EncNet is designed to use.

Scenes show sky over ground, with things on it. *Landmarks* are recognizable by appearance: trees, houses ("building")
and ponds ("water"). *Twins* are not: cows, cars and boats have the same shapes, patterns and colors. A twin is a cow in
images with trees, a car in images with houses, and a boat in images with ponds; no image has two kinds of landmarks. So
the class of a twin follows from the set of classes in the image, not from the neighborhood of the twin.

Images are written in the layout of PASCAL-Context, with its mask values for these eight classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import cv2
import numpy as np
from pydantic import Field, model_validator

from data.files.images import write_image
from data.files.masks import write_mask
from data.segmentation.pascal_context import CLASSES, LISTS, MASKS
from data.synthetic.textures import Contour, Palette, Pattern, draw_contour, draw_texture
from data.synthetic.writers import published_folder
from mtsp.config import Config


class ScenesConfig(Config):
    """Config of synthetic scenes. Ranges are (lowest, highest), both included."""

    images: int = Field(default=200, ge=2)
    height: int = Field(default=96, ge=32, le=4096)
    width: int = Field(default=128, ge=32, le=4096)
    seed: int = Field(default=0, ge=0)
    landmarks: tuple[int, int] = (1, 2)
    """Number of trees, houses or ponds in an image."""
    twins: tuple[int, int] = (1, 3)
    """Number of cows, cars or boats in an image."""
    size: tuple[float, float] = (0.13, 0.24)
    """Radius of a thing as a fraction of the image's shorter side."""
    noise: float = Field(default=4.0, ge=0)
    """Standard deviation of the noise added to every image, in gray levels."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name, lowest in (("landmarks", 0), ("twins", 0), ("size", 0.02)):
            low, high = getattr(self, name)
            if not lowest <= low <= high:
                raise ValueError(f"{name} must be two ascending numbers, at least {lowest}, got {low} and {high}")
        return self


class _Looks(NamedTuple):
    patterns: tuple[Pattern, ...]
    palette: Palette
    contours: tuple[Contour, ...] = ()


_STUFF = {
    "sky": _Looks(("clouds",), Palette(saturation=(0.05, 0.3), brightness=(0.75, 1.0), hue=(0.55, 0.62))),
    "ground": _Looks(("speckles", "clouds"), Palette(saturation=(0.2, 0.45), brightness=(0.3, 0.65), hue=(0.06, 0.12))),
}
_LANDMARKS = {
    "tree": _Looks(("speckles",), Palette((0.5, 0.9), (0.15, 0.5), (0.28, 0.36)), ("star", "blob")),
    "building": _Looks(("checks",), Palette((0.3, 0.6), (0.45, 0.8), (0.98, 1.02)), ("polygon",)),
    "water": _Looks(("stripes",), Palette((0.4, 0.8), (0.3, 0.7), (0.52, 0.6)), ("ellipse",)),
}
_TWIN_LOOKS = _Looks(("cells", "confetti"), Palette((0.6, 1.0), (0.6, 1.0), (0.12, 0.2)), ("ellipse", "blob"))
PARTNERS = {"tree": "cow", "building": "car", "water": "boat"}
"""The twin that occurs with each landmark."""


class Scene(NamedTuple):
    """A rendered scene."""

    frame: np.ndarray  # HW3 uint8, RGB
    mask: np.ndarray  # HW uint8, values 1 to 59 as in PASCAL-Context's masks


def render_scene(config: ScenesConfig, index: int) -> Scene:
    """Return scene `index`, which depends only on the config and the index.

    The kinds of landmarks alternate, so any three consecutive scenes have all kinds.
    """
    rng = np.random.default_rng([config.seed, index])
    height, width = config.height, config.width
    landmark = tuple(PARTNERS)[index % len(PARTNERS)]
    horizon = int(height * rng.uniform(0.2, 0.4))
    frame, mask = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
    for name, rows in (("sky", slice(0, horizon)), ("ground", slice(horizon, height))):
        frame[rows] = _texture(rng, _STUFF[name], height, width)[rows]
        mask[rows] = _number(name)
    things = [landmark] * int(rng.integers(config.landmarks[0], config.landmarks[1] + 1))
    things += [PARTNERS[landmark]] * int(rng.integers(config.twins[0], config.twins[1] + 1))
    for place in rng.permutation(len(things)).tolist():
        looks = _LANDMARKS.get(things[place], _TWIN_LOOKS)
        _paint(rng, Scene(frame, mask), looks, _number(things[place]), config.size, horizon)
    if config.noise:
        grain = config.noise * rng.standard_normal(frame.shape, dtype=np.float32)
        frame = np.clip(frame + grain, 0, 255).astype(np.uint8)
    return Scene(frame, mask)


def write_scenes(
    config: ScenesConfig, root: Path, *, validation: float = 0.2, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write scenes to the new folder `root` in the layout of PASCAL-Context.

    The last scenes, a fraction `validation` of all but at least one, are listed in val.txt. Raises FileExistsError if
    `root` exists and is not empty.
    """
    train = config.images - min(config.images - 1, max(1, round(validation * config.images)))
    with published_folder(root) as folder:
        for place in ("JPEGImages", MASKS, LISTS):
            (folder / place).mkdir(parents=True)
        names: dict[str, list[str]] = {"train": [], "val": []}
        for index in range(config.images):
            scene, name = render_scene(config, index), f"scene-{index:04d}"
            write_image(folder / "JPEGImages" / f"{name}.jpg", scene.frame)
            write_mask(folder / MASKS / f"{name}.png", scene.mask)
            names["train" if index < train else "val"].append(f"{name}\n")
            if progress is not None:
                progress(index + 1, config.images)
        for split, lines in names.items():
            (folder / LISTS / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def _paint(
    rng: np.random.Generator, scene: Scene, looks: _Looks, number: int, size: tuple[float, float], horizon: int
) -> None:
    """Draw one thing onto the image, with its center on the ground."""
    frame, mask = scene
    height, width = mask.shape
    radius = min(height, width) * rng.uniform(*size)
    contour = draw_contour(rng, looks.contours[rng.integers(len(looks.contours))], radius)
    middle = np.array([rng.uniform(0, width), rng.uniform(horizon, height)])
    coverage = np.zeros((height, width), np.uint8)
    points = np.rint(16 * (contour + middle)).astype(np.int32)
    cv2.fillPoly(coverage, [points], 255, lineType=cv2.LINE_AA, shift=4)
    weight = coverage[..., None] / np.float32(255)
    frame[:] = (frame * (1 - weight) + _texture(rng, looks, height, width) * weight + 0.5).astype(np.uint8)
    mask[coverage > 127] = number


def _texture(rng: np.random.Generator, looks: _Looks, height: int, width: int) -> np.ndarray:
    return draw_texture(rng, height, width, looks.patterns[rng.integers(len(looks.patterns))], looks.palette)


def _number(name: str) -> int:
    """Return the value of a class in PASCAL-Context's masks."""
    return CLASSES.index(name) + 1
