"""FlyingChairs: 22 872 pairs of rendered chairs before photos, with exact flow.

512x384 pixels; the published split has 22 232 training and 640 validation pairs. Layout: data/00001_img1.ppm,
data/00001_img2.ppm, data/00001_flow.flo, and FlyingChairs_train_val.txt with 1 (train) or 2 (val) for each pair.
Source: Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root
from data.files.lists import read_lines
from data.flow.pairs import FlowConfig, FlowPair
from data.types import DataError

_SPLITS = {"train": "1", "val": "2"}
_LIST = "FlyingChairs_train_val.txt"
_FILE = re.compile(r"([0-9]+)_(?:img[12]\.ppm|flow\.flo)")


class FlyingChairsConfig(FlowConfig):
    """Pairs of FlyingChairs. Names are the published numbers, "00050".

    Line n of FlyingChairs_train_val.txt (beside `data`, or beside the release folder) says 1 for train or 2 for val
    of pair number n, also where only a part of the pairs is there. Where numbers go beyond the list, as in a part with
    a list of its own, the list must have a line for each pair in the order of their numbers.
    """

    title: ClassVar[str] = "FlyingChairs"
    name: Literal["flying_chairs"]
    split: Literal["train", "val", "all"] = "train"

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair. Raises DataError, also where the list does not fit the pairs."""
        root = find_root(self.title, self.root, "data", below=["FlyingChairs_release", "FlyingChairs"])
        folder = root / "data"
        stems = sorted({match[1] for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))}, key=int)
        if self.split != "all":
            marks = _marks(root, stems)
            stems = [stem for stem in stems if marks[stem] == _SPLITS[self.split]]
        ends = ("img1.ppm", "img2.ppm", "flow.flo")
        return [FlowPair(stem, *(folder / f"{stem}_{end}" for end in ends)) for stem in stems]


def _marks(root: Path, stems: list[str]) -> dict[str, str]:
    """Return "1" (train) or "2" (val) for each pair."""
    path = root / _LIST if (root / _LIST).exists() else root.parent / _LIST
    if not path.exists():
        raise DataError(f"FlyingChairs at {root}: no {_LIST}; it says which pairs are for training, or use split=all")
    marks = [word for words in read_lines(path) for word in words]
    if wrong := set(marks) - set(_SPLITS.values()):
        raise DataError(f"{path}: each line is 1 (train) or 2 (val), got {sorted(wrong)[0]!r}")
    if all(1 <= int(stem) <= len(marks) for stem in stems):
        return {stem: marks[int(stem) - 1] for stem in stems}
    if len(marks) != len(stems):
        raise DataError(
            f"{path}: {len(marks)} lines fit neither the number of the last pair, {stems[-1]}, nor {len(stems)} pairs"
        )
    return dict(zip(stems, marks, strict=True))
