"""KITTI 2015: 200 street scenes with flow measured by laser, sparse.

Layout: training/image_2/000000_{10,11}.png, training/{flow_occ,flow_noc}/000000_10.png.
Source: Menze and Geiger, "Object Scene Flow for Autonomous Vehicles", CVPR 2015.
"""

from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem
from data.flow.pairs import FlowPair, FlowPairs
from mtsp.config import Config
from mtsp.types import Kind


class KittiConfig(Config):
    """Which pairs of KITTI 2015 to read."""

    kind: ClassVar[Kind] = "pairs"
    name: Literal["kitti"]
    root: Path
    """The folder that has `training`."""
    split: Literal["train", "val", "all"] = "train"
    occluded: bool = True
    """Flow also of pixels that the next frame does not show (flow_occ), or only of those it shows (flow_noc)."""

    def build(self) -> "Kitti":
        """Return the data set, its files checked to be there."""
        return Kitti(self)


class Kitti(FlowPairs):
    """Pairs with sparse flow of the training part (the test part has no public flow). Names are like "000000_10".

    The benchmark leaves the split open; here every fifth scene (000000, 000005, ...) is val, 40 of the 200.

    torchvision's KittiFlow is not used: its file lists are private, and a missing file shifts its pairs.

    Raises:
        DataError: files that are missing (the first ten and their number), or an empty split.
    """

    def __init__(self, config: KittiConfig) -> None:
        root = find_root("KITTI 2015", config.root, "training/image_2", below=["KITTI", "KittiFlow"]) / "training"
        folder = root / ("flow_occ" if config.occluded else "flow_noc")
        stems = images_by_stem(root / "image_2").keys() | images_by_stem(folder).keys()
        scenes = sorted({stem.rpartition("_")[0] for stem in stems if stem.endswith(("_10", "_11"))})
        wanted = {"train": (1, 2, 3, 4), "val": (0,), "all": (0, 1, 2, 3, 4)}[config.split]
        pairs = [
            FlowPair(
                name=f"{scene}_10",
                frame=root / "image_2" / f"{scene}_10.png",
                next_frame=root / "image_2" / f"{scene}_11.png",
                flow=folder / f"{scene}_10.png",
            )
            for scene in scenes
            if scene.isdecimal() and int(scene) % 5 in wanted
        ]
        super().__init__("KITTI 2015", config.root, pairs)
