"""Middlebury: a dozen pairs of indoor scenes, eight of them with dense flow, in part unknown.

Layout: other-data/<scene>/frame{10,11}.png, other-gt-flow/<scene>/flow10.flo.
Source: Baker, Scharstein, Lewis, Roth, Black and Szeliski, "A Database and Evaluation Methodology for Optical Flow",
IJCV 2011.
"""

from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, subfolders
from data.flow.pairs import FlowPair, FlowPairs
from mtsp.config import Config
from mtsp.types import Kind

_FRAMES = (
    "other-data",
    "other-color-twoframes/other-data",
    "other-color-twoframes",
    "other-color-allframes",
    "other-color",
)


class MiddleburyConfig(Config):
    """Which pairs of Middlebury to read."""

    kind: ClassVar[Kind] = "pairs"
    name: Literal["middlebury"]
    root: Path
    """The folder that has other-data (the two-frame color archive) and other-gt-flow."""
    split: Literal["val", "all"] = "val"
    """val: the pairs that have flow. all: also those that have none. There is nothing to train on."""

    def build(self) -> "Middlebury":
        """Return the data set, its files checked to be there."""
        return Middlebury(self)


class Middlebury(FlowPairs):
    """Pairs of frame10 and frame11, with flow where it is known. Names are like "RubberWhale".

    Unknown flow, stored as 1.67e9, is 0 and not valid.

    Raises:
        DataError: files that are missing (the first ten and their number), or no pair at all.
    """

    def __init__(self, config: MiddleburyConfig) -> None:
        root = find_root("Middlebury", config.root, "other-gt-flow", below=["Middlebury"])
        frames = next((folder for name in _FRAMES if (folder := root / name).is_dir()), root / _FRAMES[0])
        flows = root / "other-gt-flow"
        scenes = known = {folder.name for folder in subfolders(flows)}
        if config.split == "all":
            scenes = known | {folder.name for folder in subfolders(frames)}
        pairs = [
            FlowPair(
                name=scene,
                frame=frames / scene / "frame10.png",
                next_frame=frames / scene / "frame11.png",
                flow=flows / scene / "flow10.flo" if scene in known else None,
            )
            for scene in sorted(scenes)
        ]
        super().__init__("Middlebury", config.root, pairs)
