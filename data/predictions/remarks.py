"""Remarks beside scores: unknown pixels, and flow that no camera sees."""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsp.text import first_names
from mtsp.types import IGNORE

_LOG = logging.getLogger("mtsp")


class Seen(NamedTuple):
    """Numbers of one example that may be worth a remark."""

    pixels: int
    unknown: int
    """Number of pixels without a known class."""
    far: tuple[float, float]
    """Longest true and predicted flow, as a multiple of the frame's diagonal."""


def seen(prediction: np.ndarray, truth: dict[str, np.ndarray]) -> Seen:
    """Return the numbers of an example: of its true mask, HW, or of true and predicted flow, 2HW in pixels."""
    if "mask" in truth:
        return Seen(truth["mask"].size, int(np.count_nonzero(truth["mask"] == IGNORE)), (0, 0))
    valid = truth.get("flow_valid", np.True_)
    diagonal = math.hypot(*prediction.shape[-2:])
    true, predicted = (float(np.hypot(*flow).max(where=valid, initial=0)) for flow in (truth["flow"], prediction))
    return Seen(0, 0, (true / diagonal, predicted / diagonal))


_FAR = 10
"""Diagonals of a frame, beyond which flow is told. FlyingThings3D has true flow of more than one."""


class Remarks:
    """Collect unknown pixels and impossible flow over all examples, to tell them once."""

    def __init__(self, predictions: Path) -> None:
        self._predictions = predictions
        self._pixels, self._unknown, self._with_unknown = 0, 0, list[str]()
        self._far: tuple[list[str], list[str]] = [], []

    def add(self, name: str, seen: Seen) -> None:
        """Add the example called `name`."""
        self._pixels += seen.pixels
        self._unknown += seen.unknown
        self._with_unknown += [name] if seen.unknown else []
        for names, far in zip(self._far, seen.far, strict=True):
            names += [name] if far > _FAR else []

    def tell(self) -> None:
        """Log the number of unknown pixels, and warn about flow that no camera sees."""
        if self._unknown:
            _LOG.info(
                "%s of %s true pixels (%.1f %%) are unknown (255) and not counted, in %d masks: %s",
                f"{self._unknown:,}", f"{self._pixels:,}", 100 * self._unknown / self._pixels,
                len(self._with_unknown), first_names(self._with_unknown),
            )  # fmt: skip
        for whose, names in zip(("true flow", f"flow in {self._predictions}"), self._far, strict=True):
            if names:
                _LOG.warning(
                    "%s is longer than %d diagonals of the frame in %d files: %s; is it of another unit, or not marked "
                    "as unknown?", whose, _FAR, len(names), first_names(names),
                )  # fmt: skip
