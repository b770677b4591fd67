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
from data.flow.pairs import FlowPair, FlowPairs
from data.types import DataError
from mtsp.config import Config
from mtsp.types import Kind

_SPLITS = {"train": "1", "val": "2"}
_LIST = "FlyingChairs_train_val.txt"
_FILE = re.compile(r"([0-9]+)_(?:img[12]\.ppm|flow\.flo)")


class FlyingChairsConfig(Config):
    """Which pairs of FlyingChairs to read."""

    kind: ClassVar[Kind] = "pairs"
    name: Literal["flying_chairs"]
    root: Path
    """FlyingChairs_release, or the folder that has it."""
    split: Literal["train", "val", "all"] = "train"

    def build(self) -> "FlyingChairs":
        """Return the data set, its files checked to be there."""
        return FlyingChairs(self)


class FlyingChairs(FlowPairs):
    """Pairs with flow. Names are the published numbers, "00050".

    Line n of FlyingChairs_train_val.txt (beside `data`, or beside the release folder) says 1 for train or 2 for val
    of pair number n. A part of the pairs with the full list is read so too. Where numbers go beyond the list, as in
    a part with a list of its own, the list must have a line for each pair in the order of their numbers.

    Raises:
        DataError: files that are missing (the first ten and their number), an empty split, or a list that has
            another number of lines than that, or says something else than 1 or 2.
    """

    def __init__(self, config: FlyingChairsConfig) -> None:
        root = find_root("FlyingChairs", config.root, "data", below=["FlyingChairs_release", "FlyingChairs"])
        stems = {match[1] for file in (root / "data").iterdir() if (match := _FILE.fullmatch(file.name))}
        ordered = sorted(stems, key=int)
        if config.split != "all":
            chosen = _SPLITS[config.split]
            marks = _marks(root, ordered)
            ordered = [stem for stem in ordered if marks[stem] == chosen]
        folder = root / "data"
        pairs = [
            FlowPair(stem, *(folder / f"{stem}_{end}" for end in ("img1.ppm", "img2.ppm", "flow.flo")))
            for stem in ordered
        ]
        super().__init__("FlyingChairs", config.root, pairs)


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
