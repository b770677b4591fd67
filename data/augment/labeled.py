"""Augmentation of labeled images: RandAugment, random erasing, and what mixup and CutMix draw for each image."""

import random

import numpy as np
from PIL import Image

from data.augment.crops import random_box


class RandAugment:
    """timm's RandAugment (Cubuk et al., 2020), drawn from the generator of a sample.

    Args:
        policy: in timm's notation, such as `rand-m9-mstd0.5-inc1`.
        border: R, G and B of pixels outside the image.
    """

    def __init__(self, policy: str, border: tuple[int, int, int]) -> None:
        from timm.data.auto_augment import rand_augment_transform

        self._transform = rand_augment_transform(policy, {"img_mean": border})

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return `image` (HW3 uint8) augmented; the global generators that timm draws from stay as they are."""
        before = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.seed(int(rng.integers(1 << 32)))
        np.random.seed(int(rng.integers(1 << 32)))  # noqa: NPY002
        try:
            return np.array(self._transform(Image.fromarray(image)))
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def erase(image: np.ndarray, rng: np.random.Generator) -> None:
    """Overwrite a random rectangle of `image` (HW3 uint8) with random colors, of 2 to 33 % of its area.

    Zhong et al., "Random Erasing" (AAAI 2020), with a random value for each pixel, and timm's range of areas.
    """
    left, top, width, height = (int(x) for x in random_box(image.shape[:2], (0.02, 1 / 3), (0.3, 1 / 0.3), rng))
    area = image[top : top + height, left : left + width]
    area[:] = rng.integers(0, 256, area.shape, np.uint8)


def draw_mix(mixup: float, cutmix: float, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw how an image of `size` is mixed with another: the `mix` of a :class:`mtsp.types.Batch`.

    Args:
        mixup: alpha of mixup's Beta(alpha, alpha) distribution of the image's weight (Zhang et al., ICLR 2018); 0: no
            mixup.
        cutmix: alpha of CutMix (Yun et al., ICCV 2019), in which a rectangle of the other image replaces 1 - weight of
            the area; what lies outside the image is cut off, and the weight raised. 0: no CutMix. With both, each is
            drawn in half of the cases.
        size: height and width.
        rng: draws it.
    """
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    weight = rng.beta(alpha, alpha)
    if not cut:
        return np.array([weight, 0, 0, 0, 0], np.float32)
    (top, bottom), (left, right) = (_span(side, (1 - weight) ** 0.5, rng) for side in size)
    weight = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    return np.array([weight, top, bottom, left, right], np.float32)


def _span(side: int, fraction: float, rng: np.random.Generator) -> tuple[int, int]:
    """Return first and end of a span of `fraction` of `side` about a random center, cut off at both ends."""
    first = int(rng.integers(side)) - int(side * fraction) // 2
    return max(0, first), max(0, min(side, first + int(side * fraction)))
