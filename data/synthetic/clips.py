"""Synthetic clips with exact masks and flow: textured objects that move and bend over a moving background.

In a scene, the background and some *distractors* stand still, *objects* move by themselves, and the camera moves.
The mask is the union of the visible parts of the objects, as in DAVIS. It can be learned from motion: objects move
against the background, distractors do not. A fraction `cue` of the objects can also be recognized by
appearance: their colors and patterns occur nowhere else in the scene.

Displacements follow a heavy-tailed Weibull distribution (shape 0.7), because most pixels of a FlyingChairs pair move by
a few pixels and some by many. Displacements scale with the image size.
"""

from functools import lru_cache
from math import gamma
from pathlib import Path
from typing import Literal, NamedTuple, Self

import cv2
import numpy as np
from pydantic import Field, model_validator

from data.synthetic.layers import Clip, Layer, render
from data.synthetic.textures import Contour, Palette, Pattern, draw_contour, draw_photo, draw_texture, find_photos
from mtsp.config import Config

_TAIL = 0.7  # Weibull shape: 1 is exponential, smaller values have heavier tails
_REACH = 0.35  # largest distance of an object from the middle of its path, as a fraction of the shorter side
_BEND_PROBABILITY = 0.5
_MARGIN = 1.3  # size of the background's texture, in images


class SyntheticConfig(Config):
    """Config of the appearance and motion of synthetic clips. Ranges are (lowest, highest), both included."""

    clips: int = Field(default=100, ge=1)
    frames: int = Field(default=2, ge=2)
    """Number of frames per clip."""
    height: int = Field(default=192, ge=16, le=4096)
    width: int = Field(default=256, ge=16, le=4096)
    seed: int = Field(default=0, ge=0)

    objects: tuple[int, int] = (3, 10)
    """Number of objects that move by themselves: the foreground."""
    distractors: tuple[int, int] = (0, 3)
    """Number of static things, which move only with the camera. They are background, but may hide an object."""
    object_size: tuple[float, float] = (0.06, 0.35)
    """Radius of an object as a fraction of the image's shorter side; its logarithm is drawn uniformly."""

    motion: float = Field(default=8.0, ge=0)
    """Mean displacement of an object per frame, in pixels of a 384x512 image; grows with the image's diagonal."""
    camera: float = Field(default=0.5, ge=0)
    """Translation, rotation and zoom of the camera, as a fraction of an object's motion."""
    rotation: float = Field(default=4.0, ge=0)
    """Standard deviation of an object's rotation per frame, in degrees."""
    zoom: float = Field(default=0.03, ge=0)
    """Standard deviation of an object's change of scale per frame, as a fraction."""
    nonrigid: float = Field(default=0.3, ge=0, le=1)
    """Strength of bending: the steepest slope of the wave that bends half of the layers, and the speed of
    stretching."""

    domain: Literal["source", "target"] = "source"
    """Domain of the appearance. Pre-train on source (straight edges, colorful), fine-tune on target (round, dim)."""
    cue: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the objects that are recognizable by appearance. 0: only motion separates objects from background."""
    textures: Path | None = None
    """Folder of photos to texture the background and all things that are not recognizable by appearance."""
    textures_alike: bool = False
    """Show photos on things at the scale of the background, not shrunk to a thing's size, so that how fine a texture is
    does not tell a thing from the background."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise added independently to every frame, in gray levels. The flow stays exact."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("objects", "distractors", "object_size"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be two ascending numbers, at least 0, got {low} and {high}")
        if self.objects[1] + self.distractors[1] > 250:
            raise ValueError("objects and distractors together may be at most 250")
        if self.object_size[0] == 0:
            raise ValueError("object_size must be above 0")
        return self


class _World(NamedTuple):
    """Appearance of background and distractors, and of objects that are recognizable by appearance, in one domain."""

    scene: Palette
    scene_patterns: tuple[Pattern, ...]
    things: Palette
    thing_patterns: tuple[Pattern, ...]
    contours: tuple[Contour, ...]


_WORLDS = {
    "source": _World(
        scene=Palette(saturation=(0.05, 0.6), brightness=(0.2, 0.9)),
        scene_patterns=("clouds", "cells", "speckles", "confetti"),
        things=Palette(saturation=(0.6, 1.0), brightness=(0.45, 1.0)),
        thing_patterns=("stripes", "checks"),
        contours=("ellipse", "polygon", "polygon", "star", "blob"),
    ),
    "target": _World(
        scene=Palette(saturation=(0.05, 0.4), brightness=(0.1, 0.65), hue=(0.2, 0.6)),
        scene_patterns=("clouds", "clouds", "speckles", "stripes"),
        things=Palette(saturation=(0.35, 0.8), brightness=(0.2, 0.75), hue=(-0.08, 0.12)),
        thing_patterns=("cells", "confetti", "clouds"),
        contours=("star", "blob", "blob"),
    ),
}


def render_clip(config: SyntheticConfig, index: int, view: Literal["left", "right"] = "left") -> Clip:
    """Return clip `index`, which depends only on the config (except `clips`) and the index.

    The "right" view shows the same scene from a second camera to the right, so nearer layers are shifted further left.
    Raises FileNotFoundError or ValueError if there is no usable photo in `config.textures`.
    """
    rng = np.random.default_rng([config.seed, index])
    layers = _draw_scene(config, rng)
    if view == "right":
        for rank, layer in enumerate(layers):
            layer.to_image[:, 0, 2] -= config.width * (0.01 + 0.005 * rank)
    clip = render(layers, config.height, config.width)
    if config.noise:
        grain = config.noise * rng.standard_normal(clip.frames.shape, dtype=np.float32)
        clip = clip._replace(frames=np.clip(clip.frames + grain, 0, 255).astype(np.uint8))
    return clip


def _draw_scene(config: SyntheticConfig, rng: np.random.Generator) -> list[Layer]:
    """Return the layers of a scene, background first."""
    camera = _draw_camera(config, rng)
    background = _draw_background(config, rng, camera)
    moving = [True] * int(rng.integers(config.objects[0], config.objects[1] + 1))
    still = [False] * int(rng.integers(config.distractors[0], config.distractors[1] + 1))
    front = rng.permutation(np.array(moving + still, bool)).tolist()
    return [background, *(_draw_object(config, rng, camera, moves=moves) for moves in front)]


def _draw_camera(config: SyntheticConfig, rng: np.random.Generator) -> np.ndarray:
    """Return the camera's map from the world (origin in the center) to the image for every frame, Tx2x3."""
    time = _time(config)
    shift = _draw_path(config, rng, config.camera)
    angle = _swing(time, rng.normal(0, np.deg2rad(config.rotation) * config.camera * 0.3), 0.3)
    scale = np.exp(_swing(time, rng.normal(0, config.zoom * config.camera * 0.5), 0.2))
    middle = np.array([(config.width - 1) / 2, (config.height - 1) / 2])
    return _pose(shift + middle, angle, scale, np.ones_like(scale))


def _draw_background(config: SyntheticConfig, rng: np.random.Generator, camera: np.ndarray) -> Layer:
    height, width = round(_MARGIN * config.height), round(_MARGIN * config.width)
    texture = _draw_looks(config, rng, height, width, recognized=False)
    amplitude, frequency, phase = _draw_wave(config, rng, size=config.height, probability=0.5 * _BEND_PROBABILITY)
    return Layer(texture, None, np.zeros((0, 2)), camera, 0.5 * amplitude, frequency, phase, foreground=False)


def _draw_object(config: SyntheticConfig, rng: np.random.Generator, camera: np.ndarray, *, moves: bool) -> Layer:
    time = _time(config)
    radius = min(config.height, config.width) * np.exp(rng.uniform(*np.log(config.object_size)))
    kinds = _WORLDS[config.domain].contours
    contour = draw_contour(rng, kinds[rng.integers(len(kinds))], radius)
    coverage = _fill(contour, radius)
    if rng.random() < 0.15:
        hole = _fill(rng.uniform(0.3, 0.6) * draw_contour(rng, "blob", radius), radius)
        coverage = np.minimum(coverage, 255 - hole)
    texture = _draw_looks(config, rng, *coverage.shape, recognized=moves and rng.random() < config.cue)

    place = (rng.random(2) - 0.5) * [config.width, config.height]
    amplitude, frequency, phase = _draw_wave(config, rng, size=radius, probability=_BEND_PROBABILITY)
    angle, scale, stretch = np.zeros(len(time)), np.ones(len(time)), np.ones(len(time))
    path = np.zeros((len(time), 2))
    if moves:
        path = _draw_path(config, rng, 1.0)
        angle = _swing(time, rng.normal(0, np.deg2rad(config.rotation)), 0.8)
        scale = np.exp(_swing(time, rng.normal(0, config.zoom), 0.35))
        stretch = np.exp(_swing(time, rng.normal(0, 0.05 * config.nonrigid), 0.2))
    else:
        phase[:] = phase[0]  # bent once, then still
    world = _pose(place + path, rng.uniform(0, 2 * np.pi) + angle, scale, stretch)
    to_image = np.stack([c @ np.vstack([w, [0, 0, 1]]) for c, w in zip(camera, world, strict=True)])
    return Layer(texture, coverage, contour, to_image, amplitude, frequency, phase, foreground=moves)


def _draw_looks(
    config: SyntheticConfig, rng: np.random.Generator, height: int, width: int, *, recognized: bool
) -> np.ndarray:
    if config.textures is not None and not recognized:
        whole = (round(_MARGIN * config.height), round(_MARGIN * config.width)) if config.textures_alike else None
        return draw_photo(rng, height, width, _photos(config.textures), whole)
    world = _WORLDS[config.domain]
    palette, patterns = (world.things, world.thing_patterns) if recognized else (world.scene, world.scene_patterns)
    return draw_texture(rng, height, width, patterns[rng.integers(len(patterns))], palette)


_photos = lru_cache(maxsize=8)(find_photos)


def _draw_path(config: SyntheticConfig, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return shifts in pixels for every frame, T2, along a straight line, with constant speed except near its ends."""
    mean = strength * config.motion * np.hypot(config.height, config.width) / 640  # 640: the diagonal of 384x512
    speed = mean * rng.weibull(_TAIL) / gamma(1 + 1 / _TAIL)
    direction = rng.uniform(0, 2 * np.pi)
    way = _swing(_time(config), speed, _REACH * min(config.height, config.width))
    return way[:, None] * np.array([np.cos(direction), np.sin(direction)])


def _draw_wave(
    config: SyntheticConfig, rng: np.random.Generator, *, size: float, probability: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return amplitude (2), frequency (2) and phase per frame (T2) of a bend; a rigid layer has amplitude zero."""
    frequency = 2 * np.pi / (size * rng.uniform(1.0, 3.0, 2))
    amplitude = config.nonrigid * rng.uniform(0.3, 1.0, 2) / frequency
    phase = rng.uniform(0, 2 * np.pi, 2) + _time(config)[:, None] * rng.normal(0, 0.5, 2)
    bends = rng.random() < probability
    return amplitude * bends, frequency, phase


def _fill(contour: np.ndarray, radius: float) -> np.ndarray:
    """Return an antialiased mask of the contour's inside, uint8, with the origin in the center."""
    half = int(np.ceil(radius)) + 3
    coverage = np.zeros((2 * half + 1, 2 * half + 1), np.uint8)
    points = np.rint(16 * (contour + half)).astype(np.int32)
    cv2.fillPoly(coverage, [points], 255, lineType=cv2.LINE_AA, shift=4)
    return coverage


def _pose(shift: np.ndarray, angle: np.ndarray, scale: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Return affine maps Tx2x3: stretch x and squeeze y, scale, rotate, shift."""
    cosine, sine = np.cos(angle), np.sin(angle)
    along, across = scale * stretch, scale / stretch
    rows = [[cosine * along, -sine * across, shift[:, 0]], [sine * along, cosine * across, shift[:, 1]]]
    return np.moveaxis(np.array(rows), -1, 0)


def _time(config: SyntheticConfig) -> np.ndarray:
    """Return the time of each frame, zero in the middle of the clip."""
    return np.arange(config.frames) - (config.frames - 1) / 2


def _swing(time: np.ndarray, rate: float, reach: float) -> np.ndarray:
    """Return a value that changes by `rate` per frame around time 0 and swings back before it exceeds `reach`."""
    return reach * np.sin(rate * time / reach)
