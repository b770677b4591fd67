"""Label maps: the name, mask value and color of each class.

Each name is listed with its value, in the order of the values. Names in a wrong order would not change mIoU, but would
make every per-class table wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path

import cv2
import numpy as np

from data.types import DataError
from mtsp.files.palettes import palette
from mtsp.types import IGNORE

MAX_CLASSES = 65_000
"""Largest number of classes: values of masks and class ids fit into 16 bits."""

RESERVED = "(unknown)"
"""Name of class 255 where there are more than 255 classes: no pixel has it, since 255 is IGNORE."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelMap:
    """Classes of a data set, with ids 0, 1, ..., and their values in mask files.

    With more than 255 names, :data:`RESERVED` is inserted at 255, with the value -1.

    Raises ValueError if names and values do not match one to one, or a value does not fit in 16 bits or has two
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
        if bad := [value for value in meanings if not 0 <= value < 1 << 16]:
            raise ValueError(f"{self.name}: the values {bad} are not in 0 to 65535")
        if twice := _twice(meanings):
            raise ValueError(f"{self.name}: the values {twice} have two meanings each")
        if count > IGNORE:
            for key, filler in (("classes", RESERVED), ("values", -1), ("colors", (0, 0, 0))):
                given = getattr(self, key)
                object.__setattr__(self, key, given and (*given[:IGNORE], filler, *given[IGNORE:]))

    def __call__(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Convert the values `stored` in the file `path` to class ids, HW uint8 with IGNORE where unknown.

        With more than 255 classes the ids are uint16.

        Raises DataError if a value is not in the label map, as in a file with another encoding.
        """
        few = stored.dtype == np.uint8 and len(self.values) < IGNORE  # all ids and a mark for others fit into a byte
        size, kind, mark = (256, np.uint8, IGNORE - 1) if few else (1 << 16, np.uint16, (1 << 16) - 1)
        table = np.full(size, mark, kind)
        for values, ids in ((self.values, range(len(self.values))), (self.unknown, repeat(IGNORE))):
            for value, number in zip(values, ids, strict=False):
                if 0 <= value < size:
                    table[value] = number
        mask = np.asarray(cv2.LUT(stored, table)) if few else table[stored]
        if (foreign := mask == mark).any():
            found = np.unique(stored[foreign]).tolist()
            raise DataError(
                f"{path}: the values {found} are not in the label map {self.name} (classes: {ranges(self.values)}, "
                f"unknown: {ranges(self.unknown) or 'none'}); check the encoding of the file and the label map"
            )
        return mask if len(self.values) > IGNORE else mask.astype(np.uint8, copy=False)

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
