"""Corrupt frames to measure how a classifier bears a shift of its input: blur, noise, low contrast, JPEG.

The kinds are those of Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019; strengths are ours, chosen for small images, and applied at the size the network sees.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtsp.config import Config
from mtsp.evaluation.classes import class_names
from mtsp.indices import evenly_spaced
from mtsp.types import Batch, Examples, Kind

STRENGTHS = (1, 2)

Corrupt = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


class CorruptionsConfig(Config):
    """Measure the final weights on corrupted frames: four corruptions at two strengths each."""

    data: tuple[str, ...] = Field(min_length=1)
    """Entries of `evaluation.data` with labeled images. The results have an entry `NAME_corrupted`."""
    limit: int | None = Field(default=None, gt=0)
    """Use only this many samples of each entry, evenly spaced."""


def _blur(frame: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), sigmaX=0.75 * strength)


def _noise(frame: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return frame + rng.normal(0, 0.06 * strength, frame.shape).astype(np.float32)


def _contrast(frame: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    mean = frame.mean((0, 1), keepdims=True)
    return mean + (frame - mean) * np.float32(0.5**strength)


def _jpeg(frame: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    image = np.round(frame * 255).clip(0, 255).astype(np.uint8)
    _, stored = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, (25, 10)[strength - 1]])
    decoded = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1].astype(np.float32) / 255


CORRUPTIONS: dict[str, Corrupt] = {"blur": _blur, "noise": _noise, "contrast": _contrast, "jpeg": _jpeg}
"""Corruption by name; each takes HW3 float32 RGB in [0, 1], a strength of 1 or 2, and a random generator."""


class Corrupted:
    """Examples with corrupted frames; the noise of a sample is the same at every evaluation.

    Args:
        examples: labeled images.
        name: one of :data:`CORRUPTIONS`.
        strength: 1 or 2.
        limit: see :class:`CorruptionsConfig`.
    """

    def __init__(self, examples: Examples, name: str, strength: int, limit: int | None = None) -> None:
        self._examples, self._corrupt, self._strength = examples, CORRUPTIONS[name], strength
        self._indices = evenly_spaced(len(examples), limit or len(examples))
        self.kind: Kind = examples.kind
        self.classes = class_names(examples)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Batch:
        """Return example `index` with a corrupted frame."""
        batch = self._examples[self._indices[index]]
        frame = batch["frame"].permute(1, 2, 0).contiguous().numpy()
        corrupted = self._corrupt(frame, self._strength, np.random.default_rng(index)).clip(0, 1)
        return Batch(**{**batch, "frame": _as_tensor(corrupted)})

    def train_sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Return example `index` for training, not corrupted."""
        return self._examples.train_sample(self._indices[index], rng)


def _as_tensor(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32))
