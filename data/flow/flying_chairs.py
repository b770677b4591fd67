"""FlyingChairs: 22 872 pairs of rendered chairs in front of photos, with exact flow.

512x384 pixels; the published split has 22 232 training and 640 validation pairs. Layout: data/00001_img1.ppm,
data/00001_img2.ppm, data/00001_flow.flo, and FlyingChairs_train_val.txt with 1 (train) or 2 (val) for each pair.
Source: Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from data.files.list_files import read_lines
from data.files.listing import find_root
from data.flow.pairs import FlowConfig, FlowPair
from data.types import DataError

_SPLITS = {"train": "1", "val": "2"}
_LIST = "FlyingChairs_train_val.txt"
_FILE = re.compile(r"([0-9]+)_(?:img[12]\.ppm|flow\.flo)")


class FlyingChairsConfig(FlowConfig):
    """Config of FlyingChairs. Pairs are named by their published numbers, "00050".

    Line n of FlyingChairs_train_val.txt (beside `data`, or beside the release folder) is 1 (train) or 2 (val) for pair
    number n, even if only some of the pairs exist. If pair numbers exceed the length of the list, as in a partial copy
    with its own list, the list must have one line per existing pair, in the order of pair numbers.
    """

    title: ClassVar[str] = "FlyingChairs"
    name: Literal["flying_chairs"]
    split: Literal["train", "val", "all"] = "train"

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair. Raises DataError, also if the list does not match the pairs."""
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
        raise DataError(f"FlyingChairs at {root}: no {_LIST}, which defines the split; add it, or set split=all")
    marks = [word for words in read_lines(path) for word in words]
    if wrong := set(marks) - set(_SPLITS.values()):
        raise DataError(f"{path}: each line must be 1 (train) or 2 (val), got {sorted(wrong)[0]!r}")
    if all(1 <= int(stem) <= len(marks) for stem in stems):
        return {stem: marks[int(stem) - 1] for stem in stems}
    if len(marks) != len(stems):
        raise DataError(
            f"{path}: {len(marks)} lines, expected one for each of {len(stems)} pairs or for numbers up to {stems[-1]}"
        )
    return dict(zip(stems, marks, strict=True))
