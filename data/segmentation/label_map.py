"""Label maps: the name, mask value and color of each class.

Classes are in the order of their values, and names stand beside values: names in a wrong order would leave mIoU as it
is and make every per-class table wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.types import DataError
from mtsp.files.palettes import palette
from mtsp.types import IGNORE

MAX_CLASSES = 254
"""Most classes in a byte: one value is IGNORE, one marks values that the map does not know."""

_FOREIGN = MAX_CLASSES

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelMap:
    """The classes of a data set, with ids 0, 1, ..., and the values that stand for them in mask files.

    Raises:
        ValueError: the names and values do not match one to one, or a value is no byte or means two things.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]  # value of each class in the files
    unknown: tuple[int, ...] = (IGNORE,)  # values in the files where the class is unknown
    colors: tuple[Color, ...] = ()  # color of each class; none: the colors of PASCAL VOC

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ValueError(f"{self.name}: {len(self.classes)} classes; 1 to {MAX_CLASSES} fit into a byte")
        if len(self.classes) != len(self.values):
            raise ValueError(f"{self.name}: {len(self.classes)} classes, but {len(self.values)} values for them")
        if twice := _twice(self.classes):
            raise ValueError(f"{self.name}: two classes are called {twice[0]!r}")
        if self.colors and len(self.colors) != len(self.classes):
            raise ValueError(f"{self.name}: {len(self.classes)} classes, but {len(self.colors)} colors for them")
        meanings = (*self.values, *self.unknown)
        if bad := [value for value in meanings if not 0 <= value <= 255]:
            raise ValueError(f"{self.name}: the values {bad} are outside 0 to 255")
        if twice := _twice(meanings):
            raise ValueError(f"{self.name}: the values {twice} have two meanings each")

    def __call__(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Convert the values `stored` in the file `path` to class ids, HW uint8 with IGNORE where unknown.

        Raises:
            DataError: a value that is neither a class nor unknown: the file is of another data set or encoding.
        """
        table = np.full(256, _FOREIGN, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.unknown)] = IGNORE
        mask = np.asarray(cv2.LUT(stored, table))
        if (foreign := mask == _FOREIGN).any():
            found = np.unique(stored[foreign]).tolist()
            raise DataError(
                f"{path}: the values {found} are no labels of {self.name}, whose classes are {ranges(self.values)}, "
                f"unknown {ranges(self.unknown) or 'none'}; the file has another encoding, or the label map is wrong"
            )
        return mask

    def palette(self) -> np.ndarray:
        """Return the color of each class, K3 uint8 RGB."""
        if self.colors:
            return np.array(self.colors, np.uint8)
        # Color 0 of VOC's palette is black, for background; if class 0 is something else, skip it.
        shift = 0 if self.classes[0] == "background" else 1
        return palette(len(self.classes) + shift)[shift:]


def ranges(values: Sequence[int]) -> str:
    """Return whole numbers as ranges: "0 to 10, 12"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def _twice(values: Sequence[object]) -> list[object]:
    seen: set[object] = set()
    return [value for value in values if value in seen or seen.add(value)]
