"""Middlebury: a dozen pairs of indoor scenes, eight of them with dense flow that is partly unknown.

Layout: other-data/<scene>/frame{10,11}.png, other-gt-flow/<scene>/flow10.flo.
Source: Baker, Scharstein, Lewis, Roth, Black and Szeliski, "A Database and Evaluation Methodology for Optical Flow",
IJCV 2011.
"""

from typing import ClassVar, Literal

from data.files.listing import find_root, subfolders
from data.flow.pairs import FlowConfig, FlowPair

_COLOR = ("other-color-twoframes", "other-color-allframes", "other-color")
_FRAMES = ("other-data", "other-color-twoframes/other-data", *_COLOR)


class MiddleburyConfig(FlowConfig):
    """Config of Middlebury: pairs of frame10 and frame11, named like "RubberWhale".

    `root` has the folders other-data (the two-frame color archive) and other-gt-flow. Unknown flow, stored as 1.67e9,
    is set to 0 and marked as invalid.
    """

    title: ClassVar[str] = "Middlebury"
    name: Literal["middlebury"]
    split: Literal["val", "all"] = "val"
    """val: the pairs with flow. all: also the pairs without flow. There is no training split."""

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair."""
        root = find_root(self.title, self.root, "other-gt-flow", below=["Middlebury"])
        frames = next((folder for name in _FRAMES if (folder := root / name).is_dir()), root / _FRAMES[0])
        flows = root / "other-gt-flow"
        scenes = known = {folder.name for folder in subfolders(flows)}
        if self.split == "all":
            scenes = known | {folder.name for folder in subfolders(frames)}
        return [
            FlowPair(
                name=scene,
                frame=frames / scene / "frame10.png",
                next_frame=frames / scene / "frame11.png",
                flow=flows / scene / "flow10.flo" if scene in known else None,
            )
            for scene in sorted(scenes)
        ]
