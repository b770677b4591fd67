"""Read indexed masks by color, since image tools may have reordered their palettes."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from data.types import DataError
from mtsp.files.palettes import palette

Color = tuple[int, int, int]


def used_indices(pixels: np.ndarray) -> np.ndarray:
    """Return the values that occur in a mask, HW uint8, in ascending order."""
    flat = pixels.reshape(-1)
    starts = np.append(flat[:1], flat[1:][flat[1:] != flat[:-1]])  # of runs of equal pixels: ten times as fast as all
    return np.flatnonzero(np.bincount(starts, minlength=256))


def foreground_table(path: Path, colors: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return for each index whether it is the object, 256 bool: black indices are background, all others the object.

    Args:
        path: file of the mask, for messages.
        colors: color of each index, N3 uint8.
        used: indices that occur in the mask.

    Raises:
        DataError: the colors do not identify the background: no used index is black although index 0 is used, or all
            are black.
    """
    bright = np.zeros(256, bool)
    bright[: len(colors)] = colors.any(axis=1)
    table = np.arange(256) > 0
    if (bright[used] == table[used]).all():
        return table
    if not bright[used].any():
        raise DataError(
            f"{path}: its palette shows index {used[used > 0][0]} in black, as background; write the colors, too"
        )
    known = {(255, 255, 255), *map(tuple, palette().tolist())}
    if bright[used].all() and tuple(colors[0].tolist()) not in known:
        raise DataError(
            f"{path}: its palette shows index 0, the background, as {tuple(colors[0].tolist())}, and nothing in black; "
            "store 0 in black, or a gray mask"
        )
    return bright


def id_table(path: Path, colors: np.ndarray, used: np.ndarray) -> np.ndarray | None:
    """Return the id of each index, 256 uint8, by the colors of PASCAL VOC and DAVIS; None if ids are the indices.

    Colors that belong to no id do not contradict the indices.

    Raises:
        DataError: some indices have the colors of other ids, and other indices have unknown colors.
    """
    ids = _voc_ids()
    known = [ids.get(tuple(colors[i].tolist())) if i < len(colors) else None for i in used.tolist()]
    wrong = [(int(i), id_) for i, id_ in zip(used, known, strict=True) if id_ not in (None, i)]
    if not wrong:
        return None
    if None in known:
        index, id_ = wrong[0]
        raise DataError(
            f"{path}: its palette is in part another: index {index} has the color of id {id_}, "
            f"index {used[known.index(None)]} one of no id; store the ids as indices"
        )
    table = np.zeros(256, np.uint8)
    table[used] = [ids[tuple(colors[i].tolist())] for i in used.tolist()]
    return table


@lru_cache(maxsize=1)
def _voc_ids() -> dict[Color, int]:
    return {(int(r), int(g), int(b)): i for i, (r, g, b) in enumerate(palette().tolist())}


class SameColors:
    """Detect masks in a folder that use the same color at different indices.

    An image tool that sorts the palette does so differently for each file, so that indices are no longer ids.
    """

    def __init__(self) -> None:
        self._index: dict[Color, tuple[int, Path]] = {}
        self._seen: set[bytes] = set()

    def check(self, path: Path, colors: np.ndarray, used: np.ndarray) -> None:
        """Check one file. Raises DataError if one of its colors has another index in an earlier file.

        Args:
            path: the file, for messages.
            colors: its palette, N3.
            used: the indices that occur in its mask.
        """
        key = colors.tobytes() + used.tobytes()
        if key in self._seen:
            return
        pairs = [(tuple(colors[i].tolist()), int(i)) for i in used if i < len(colors)]
        if len({color for color, _ in pairs}) == len(pairs):
            for color, index in pairs:
                other, where = self._index.setdefault(color, (index, path))
                if other != index:
                    raise DataError(
                        f"{path}: its palette has the color {color} at index {index}, which is {other} in {where}; an "
                        "image tool has sorted the colors anew: store ids as gray values, or one palette for all masks"
                    )
        self._seen.add(key)
