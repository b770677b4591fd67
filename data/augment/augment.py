"""Augment both frames, their mask and their flow together; the flow stays exact."""

import math
from typing import Annotated, Any, Literal, Self

import cv2
import numpy as np
from pydantic import Field, model_validator

from data.augment import geometry
from data.augment.color import ColorConfig, Draw, Factor, draw_factor, draw_spread
from data.augment.crops import random_box
from data.augment.geometry import Size
from data.augment.labeled import RandAugment, draw_mix, erase
from data.files.undecoded import UndecodedJpeg, UndecodedSample
from mtsp.config import Config
from mtsp.types import IGNORE, Sample

TRIES = 50
"""Maximum number of draws for `keep_inside`; after that, both frames are cropped at the center, as in FlowNet2."""

NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(gt=0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class RelativeConfig(Config):
    """Additional motion and color changes of the second frame. The defaults change nothing."""

    translate: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    """Spread in x and y, as fractions of the output's width and height."""
    rotate: NonNegative = 0.0
    """Spread of the rotation about the output's center, in degrees."""
    scale: Factor = (1.0, 1.0)
    color: ColorConfig = ColorConfig()
    draw: Draw = "log-normal"


class AugmentConfig(Config):
    """Config of the augmentation. The defaults change nothing; `preset` sets other defaults.

    The image is stretched to `resize` (if set), then scaled, squeezed, rotated and flipped about its center. The center
    is placed at the output's center and moved by `translate`, and `crop` cuts out the output. All steps are combined
    into one affine map, so each image is interpolated only once. Presets:

    - `none`: no augmentation.
    - `segflow`: SegFlow's augmentation (`SegFlow_davis_fgbg_data_layer.py` of the release), at 480x854. Departures:
      one bilinear warp replaces several nearest-neighbor warps in whole-pixel steps; a shrunken image stays small
      inside a border, while the release stretches it back, which only blurs it; the release leaves one sample in 1001
      unchanged.
    - `flownet`: Dosovitskiy et al., "FlowNet" (ICCV 2015), for 384x512 pairs. The paper specifies neither the
      second frame's own motion nor the handling of crops that leave the image; both are as in `flownet2`.
    - `flownet2`: FlowNet2's training template in Caffe, with the same geometry. Its chain of powers, factors and
      additions on color eigenvectors becomes factors in RGB with about the same spread, a rotation of hue and a gamma.
      The second frame's spreads are the final values of the template, which starts at half of them. If 50 draws fail,
      both frames are cropped at the center.
    - `segmentation`: the usual augmentation for segmentation: scale 0.5-2, rotation 10 degrees, random crop, flip,
      color.
    - `encnet`: as EncNet's published checkpoints were trained (release 0.5 of its authors' code): short side of 520
      pixels times 0.5-2, flip, a 480x480 crop, black padding below and to the right of smaller images, blur in half of
      the cases. Departures: the short side is not rounded to whole pixels before the crop; as in all presets, images
      are sampled without a filter unless they shrink to half or less.
    - `inception`: for classification, as DSTL's code trains Inception-V3 (slim's `inception_preprocessing`, fast
      mode): a rectangle of 5 to 100 % of the area stretched to 299x299, flip, brightness and saturation. Slim draws the
      added brightness uniformly up to 32/255; here it is normal with the same deviation.
    """

    preset: Literal["none", "segflow", "flownet", "flownet2", "segmentation", "encnet", "inception"] = "none"
    resize: tuple[Side, Side] | None = None
    """Height and width that every image is stretched to first, in the same warp; null: keep the image's size."""
    short_side: Side | None = None
    """Alternative to `resize`: scale the shorter side to this length first and keep the aspect ratio."""
    crop: tuple[Side, Side] | None = None
    """Height and width of the output; null: the size of the (resized) image."""
    position: Literal["center", "random"] = "center"
    """Position of the crop: at the image's center, or uniformly random in the scaled image."""
    border: Literal["around", "after"] = "around"
    """Where to pad if a `random` crop is larger than the image: randomly on all sides, or below and to the right."""
    scale: Factor = (1.0, 1.0)
    squeeze: NonNegative = 0.0
    """Spread of k, where x is stretched by e^k and y is shrunk by e^k."""
    rotate: NonNegative = 0.0
    """Spread of the rotation, in degrees."""
    translate: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    """Spread in x and y, as fractions of the output's width and height."""
    flip: Probability = 0.0
    """Probability of a left-right flip."""
    vertical_flip: Probability = 0.0
    draw: Draw = "uniform"
    """Distribution of `scale`, `squeeze`, `rotate` and `translate`."""
    area: Factor | None = None
    """Random resized crop: stretch a random rectangle of this fraction of the image's area to `crop`, instead of
    `scale` and `translate`; flips and `rotate` follow, about the output's center."""
    aspect: Factor = (3 / 4, 4 / 3)
    """Range of the width-to-height ratio of the rectangle of `area`; its logarithm is drawn uniformly."""
    keep_inside: bool = False
    """Draw again until the outputs of both frames lie inside the image; after 50 draws take the center crop."""
    relative: RelativeConfig | None = None
    """The second frame's own motion and color."""
    color: ColorConfig = ColorConfig()
    """Color changes, the same for both frames except for noise."""
    blur: NonNegative = 0.0
    """Largest standard deviation, in output pixels, of the Gaussian blur applied to half of the samples."""
    rand_augment: Annotated[str, Field(pattern=r"^rand(-(m|n|mmax|inc)\d+|-(p|mstd)\d+(\.\d+)?)+$")] | None = None
    """timm's RandAugment, after all other changes, as in `rand-m9-n2-mstd0.5-inc1`: magnitude, number of changes,
    spread of the magnitude, and that each change grows with it. For labeled images alone, as are the next three."""
    erase: Probability = 0.0
    """Probability of overwriting a random rectangle of 2 to 33 % of the area with random colors."""
    mixup: NonNegative = 0.0
    """Alpha of mixup: images and labels are mixed in pairs, with weights from Beta(alpha, alpha); 0: none."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix: a rectangle is replaced by that of the other image of the pair, and the label by its share of
    the area; 0: none. With both, half of the images are mixed in each way."""
    frame_border: tuple[Byte, Byte, Byte] = (124, 116, 104)
    """R, G and B of pixels outside the image; default: ImageNet's mean."""
    mask_border: Byte = IGNORE
    """Class of mask pixels outside the image; 255: unknown."""

    @model_validator(mode="after")
    def _fill_in_preset(self) -> Self:
        # After, not before: a before-validator would no longer let pydantic read JSON lists as tuples.
        given = self.model_fields_set
        if self.resize is not None and self.short_side is not None:
            raise ValueError("`resize` and `short_side` both set the size of the image; set only one of them")
        for key, value in PRESETS[self.preset].items():
            replaced = {"resize", "short_side"} & given if key in ("resize", "short_side") else {key} & given
            if not replaced:
                object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _a_rectangle_is_cut_once(self) -> Self:
        if self.area is None:
            return self
        if self.crop is None or self.area[1] > 1:
            raise ValueError(
                "`area` is a fraction of the image, at most 1, and needs `crop`, the size to stretch it to"
            )
        still = {"scale": (1.0, 1.0), "squeeze": 0.0, "translate": (0.0, 0.0), "position": "center"}
        if ignored := [key for key, value in still.items() if getattr(self, key) != value]:
            raise ValueError(f"`area` draws the size and position itself; leave out {', '.join(ignored)}")
        return self

    @property
    def only_for_labeled(self) -> list[str]:
        """Keys in use that would make masks or flow wrong."""
        return [key for key in ("rand_augment", "erase", "mixup", "cutmix") if getattr(self, key)]

    def build(self) -> "Augmentation":
        """Return the augmentation."""
        return Augmentation(self)


_FLOWNET_RELATIVE = RelativeConfig(
    translate=(0.03, 0.03),
    rotate=math.degrees(0.03),
    scale=(math.exp(-0.03), math.exp(0.03)),
    color=ColorConfig(
        gamma=(math.exp(-0.02), math.exp(0.02)), channels=(math.exp(-0.02), math.exp(0.02)), shift=0.02,
        contrast=(1 - 0.02 * math.sqrt(3), 1 + 0.02 * math.sqrt(3)),  # uniform, with the same deviation
        draw="log-normal",
    ),
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "segflow": {
        "resize": (480, 854), "scale": (0.95, 1.05), "rotate": 5.0, "translate": (0.05, 0.05), "flip": 0.5,
        "frame_border": (0, 0, 0), "mask_border": 0,
    },
    "flownet": {
        "crop": (320, 448), "keep_inside": True, "frame_border": (0, 0, 0),
        "scale": (0.9, 2.0), "rotate": 17.0,
        "translate": (0.2 * 512 / 448, 0.2 * 512 / 320),  # a fifth of the image's width, in x and in y
        "relative": _FLOWNET_RELATIVE,
        "color": ColorConfig(shift=0.2, contrast=(0.2, 1.4), channels=(0.5, 2.0), gamma=(0.7, 1.5), noise=(0.0, 0.04)),
    },
    "flownet2": {
        "crop": (320, 448), "keep_inside": True, "frame_border": (0, 0, 0), "draw": "log-uniform",
        "scale": (math.exp(-0.2), math.exp(0.6)), "squeeze": 0.3, "rotate": math.degrees(0.4), "translate": (0.4, 0.4),
        "relative": _FLOWNET_RELATIVE,
        "color": ColorConfig(
            brightness=(math.exp(-0.4), math.exp(0.4)), gamma=(math.exp(-0.6), math.exp(0.2)),
            saturation=(math.exp(-0.8), math.exp(0.2)), hue=math.degrees(1.0), shift=0.04, noise=(0.0, 0.06),
            channels=(math.exp(-0.35), math.exp(0.35)),  # normal with 0.2 in the template, times sqrt(3)
            draw="log-uniform",
        ),
    },
    "segmentation": {
        "crop": (480, 480), "position": "random", "scale": (0.5, 2.0), "rotate": 10.0, "flip": 0.5,
        "color": ColorConfig(brightness=(0.75, 1.25), contrast=(0.75, 1.25), saturation=(0.75, 1.25), hue=10.0),
    },
    "encnet": {
        "short_side": 520, "crop": (480, 480), "position": "random", "border": "after", "scale": (0.5, 2.0),
        "flip": 0.5, "blur": 1.0, "frame_border": (0, 0, 0),
    },
    "inception": {
        "crop": (299, 299), "area": (0.05, 1.0), "flip": 0.5,
        "color": ColorConfig(shift=32 / 255 / math.sqrt(3), saturation=(0.5, 1.5)),
    },
}  # fmt: skip
"""Defaults of each preset; keys set in addition to `preset` override them."""


class Augmentation:
    """The augmentation of an :class:`AugmentConfig`: a function of a sample and a random generator."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        policy = config.rand_augment
        self._rand_augment = None if policy is None else RandAugment(policy, config.frame_border)

    def __call__(self, sample: Sample | UndecodedSample, rng: np.random.Generator) -> Sample:
        """Return `sample` augmented; `sample` is not changed.

        The same state of `rng` gives the same result. `flow_valid` is added to every sample that has `flow`. A frame
        that is undecoded is decoded at the scale that the random map needs.
        Raises ValueError if the arrays of `sample` differ in height or width.
        """
        source = check_sizes(sample)
        config = self.config
        size, first, second = self.maps(source, rng)
        color = next_color = config.color.sample(rng)
        if config.relative is not None:
            next_color = config.relative.color.sample(rng).after(color)

        pixels, to_output = _decoded(sample["frame"], first)
        frame = geometry.warp_image(pixels, to_output, size, config.frame_border)
        out = Sample(name=sample["name"], frame=color.apply(frame, rng))
        if "label" in sample:
            out["label"] = sample["label"]
        if "next_frame" in sample:
            next_frame = geometry.warp_image(sample["next_frame"], second, size, config.frame_border)
            out["next_frame"] = next_color.apply(next_frame, rng)
        if config.blur and rng.random() < 0.5:
            deviation = config.blur * rng.random()
            out["frame"] = _blurred(out["frame"], deviation)
            if "next_frame" in out:
                out["next_frame"] = _blurred(out["next_frame"], deviation)
        if self._rand_augment is not None:
            out["frame"] = self._rand_augment(out["frame"], rng)
        if config.erase and rng.random() < config.erase:
            erase(out["frame"], rng)
        if config.mixup or config.cutmix:
            out["mix"] = draw_mix(config.mixup, config.cutmix, size, rng)
        if "mask" in sample:
            out["mask"] = geometry.warp_mask(sample["mask"], first, size, config.mask_border)
        if "flow" in sample:
            flow, valid = sample["flow"], sample.get("flow_valid")
            out["flow"], out["flow_valid"] = geometry.warp_flow(flow, valid, first, second, size)
        return out

    def maps(self, source: Size, rng: np.random.Generator) -> tuple[Size, np.ndarray, np.ndarray]:
        """Draw both frames' maps from images of size `source` to the output; return the output's size and both maps.

        See `data.augment.geometry`. Without `relative` both maps are the same object.
        """
        config = self.config
        base = config.resize or source
        if config.short_side is not None:
            factor = config.short_side / min(source)
            base = (round(source[0] * factor), round(source[1] * factor))
        size = config.crop or base
        for _ in range(TRIES if config.keep_inside else 1):
            first = self._shared(base, size, rng) @ geometry.resize(source, base)
            second = first
            if config.relative is not None:
                second = _about_center(_relative(config.relative, size, rng), size) @ first
            if not config.keep_inside or all(geometry.covers(m, source, size) for m in (first, second)):
                return size, first, second
        middle = _place(np.eye(3), base, size, (0.0, 0.0)) @ geometry.resize(source, base)
        return size, middle, middle

    def _shared(self, base: Size, size: Size, rng: np.random.Generator) -> np.ndarray:
        """Draw the map that both frames share, from the resized image to the output."""
        config = self.config
        if config.area is not None:
            return self._cut(config.area, base, size, rng)
        scale = draw_factor(rng, config.scale, config.draw)
        squeeze = math.exp(draw_spread(rng, config.squeeze, config.draw))
        angle = draw_spread(rng, config.rotate, config.draw)
        shift = [draw_spread(rng, config.translate[axis], config.draw) * size[1 - axis] for axis in (0, 1)]
        mirror = self._mirror(rng)
        for axis, place in enumerate(rng.uniform(-0.5, 0.5, size=2)):
            if config.position == "random":
                factor = scale * (squeeze if axis == 0 else 1 / squeeze)
                surplus = base[1 - axis] * factor - size[1 - axis]
                if surplus < 0 and config.border == "after":
                    shift[axis] += surplus / 2  # align the top left corners of image and output
                else:
                    shift[axis] += place * abs(surplus)
        linear = mirror @ geometry.rotate(angle) @ geometry.scale(scale * squeeze, scale / squeeze)
        return _place(linear, base, size, (shift[0], shift[1]))

    def _cut(self, area: tuple[float, float], base: Size, size: Size, rng: np.random.Generator) -> np.ndarray:
        """Draw the map of a random resized crop."""
        config = self.config
        left, top, width, height = random_box(base, area, config.aspect, rng)
        stretch = geometry.scale(size[1] / width, size[0] / height) @ geometry.translate(-left, -top)
        angle = draw_spread(rng, config.rotate, config.draw)
        return _about_center(self._mirror(rng) @ geometry.rotate(angle), size) @ stretch

    def _mirror(self, rng: np.random.Generator) -> np.ndarray:
        """Draw whether to flip, and return the flip about the origin."""
        factors = [-1.0 if rng.random() < p else 1.0 for p in (self.config.flip, self.config.vertical_flip)]
        return geometry.scale(*factors)


def _decoded(frame: np.ndarray | UndecodedJpeg, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame's pixels, reduced if it is undecoded and `affine` shrinks it, and their map to the output."""
    if isinstance(frame, np.ndarray):
        return frame, affine
    pixels, scale = frame.decode(geometry.largest_scale(affine))
    return pixels, affine @ geometry.scale(1 / scale, 1 / scale)


def _blurred(image: np.ndarray, deviation: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), max(deviation, 1e-3))  # OpenCV would choose a deviation for 0


def check_sizes(sample: Sample | UndecodedSample) -> Size:
    """Return the height and width of all arrays of `sample`. Raises ValueError if they differ."""
    height, width = sample["frame"].shape[:2]
    for key, array in sample.items():
        if isinstance(array, np.ndarray) and array.shape[:2] != (height, width):
            found = "x".join(map(str, array.shape[:2]))
            raise ValueError(f"{sample['name']}: {key} is {found}, but the frame is {height}x{width}")
    return height, width


def _place(linear: np.ndarray, base: Size, size: Size, shift: tuple[float, float]) -> np.ndarray:
    """Return the map that applies `linear` about the center of `base` and puts it on the center of `size`, shifted."""
    target = geometry.translate(size[1] / 2 + shift[0], size[0] / 2 + shift[1])
    return target @ linear @ geometry.translate(-base[1] / 2, -base[0] / 2)


def _about_center(change: np.ndarray, size: Size) -> np.ndarray:
    center = geometry.translate(size[1] / 2, size[0] / 2)
    return center @ change @ np.linalg.inv(center)


def _relative(config: RelativeConfig, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Draw the second frame's own motion about the origin."""
    scale = draw_factor(rng, config.scale, config.draw)
    angle = draw_spread(rng, config.rotate, config.draw)
    x, y = (draw_spread(rng, config.translate[axis], config.draw) * size[1 - axis] for axis in (0, 1))
    return geometry.translate(x, y) @ geometry.rotate(angle) @ geometry.scale(scale, scale)
