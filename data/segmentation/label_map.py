"""Label maps: the name, mask value and color of each class.

Each name is listed with its value, in the order of the values. Names in a wrong order would not change mIoU, but would
make every per-class table wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from data.types import DataError
from mtsp.files.palettes import palette
from mtsp.types import IGNORE

MAX_CLASSES = 254
"""Largest number of classes in a byte: one value is IGNORE, and one marks values that are not in the label map."""

_FOREIGN = MAX_CLASSES

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelMap:
    """Classes of a data set, with ids 0, 1, ..., and their values in mask files.

    Raises ValueError if names and values do not match one to one, or a value does not fit in a byte or has two
    meanings.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]  # value of each class in the files
    unknown: tuple[int, ...] = (IGNORE,)  # values in the files where the class is unknown
    colors: tuple[Color, ...] = ()  # color of each class; empty: the colors of PASCAL VOC

    def __post_init__(self) -> None:
        count = len(self.classes)
        if not 1 <= count <= MAX_CLASSES:
            raise ValueError(f"{self.name}: {count} classes; the number of classes must be 1 to {MAX_CLASSES}")
        for what, given in (("values", self.values), ("colors", self.colors or self.classes)):
            if len(given) != count:
                raise ValueError(f"{self.name}: {count} classes, but {len(given)} {what} for them")
        if twice := _twice(self.classes):
            raise ValueError(f"{self.name}: two classes have the name {twice[0]!r}")
        meanings = (*self.values, *self.unknown)
        if bad := [value for value in meanings if not 0 <= value <= 255]:
            raise ValueError(f"{self.name}: the values {bad} are not in 0 to 255")
        if twice := _twice(meanings):
            raise ValueError(f"{self.name}: the values {twice} have two meanings each")

    def __call__(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Convert the values `stored` in the file `path` to class ids, HW uint8 with IGNORE where unknown.

        Raises DataError if a value is not in the label map, as in a file with another encoding.
        """
        table = np.full(256, _FOREIGN, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.unknown)] = IGNORE
        mask = np.asarray(cv2.LUT(stored, table))
        if (foreign := mask == _FOREIGN).any():
            found = np.unique(stored[foreign]).tolist()
            raise DataError(
                f"{path}: the values {found} are not in the label map {self.name} (classes: {ranges(self.values)}, "
                f"unknown: {ranges(self.unknown) or 'none'}); check the encoding of the file and the label map"
            )
        return mask

    def palette(self) -> np.ndarray:
        """Return the color of each class, K3 uint8 RGB."""
        if self.colors:
            return np.array(self.colors, np.uint8)
        # Color 0 of VOC's palette is black and meant for background; skip it if class 0 is not background.
        shift = 0 if self.classes[0] == "background" else 1
        return palette(len(self.classes) + shift)[shift:]


def ranges(values: Sequence[int]) -> str:
    """Format whole numbers as ranges: "0 to 10, 12"."""
    # Within a run of consecutive numbers, value minus index is constant.
    groups = groupby(enumerate(sorted(values)), key=lambda pair: pair[1] - pair[0])
    runs = [(found[0][1], found[-1][1]) for found in (list(group) for _, group in groups)]
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def _twice(values: Sequence[object]) -> list[object]:
    seen: set[object] = set()
    return [value for value in values if value in seen or seen.add(value)]
