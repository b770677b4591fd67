"""KITTI 2015: 200 street scenes with sparse flow measured by laser.

Layout: training/image_2/000000_{10,11}.png, training/{flow_occ,flow_noc}/000000_10.png. The 16-bit PNG files of flow
are read by :func:`data.files.flow_formats.kitti.read_kitti_flow`.
Source: Menze and Geiger, "Object Scene Flow for Autonomous Vehicles", CVPR 2015.
"""

from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem
from data.flow.pairs import FlowConfig, FlowPair


class KittiConfig(FlowConfig):
    """Config of KITTI 2015's training set (the test set has no public flow). Pairs are named like "000000_10".

    The benchmark defines no validation split; here every fifth scene (000000, 000005, ...) is val, 40 of the 200.
    torchvision's KittiFlow is not used: its file lists are private, and a missing file shifts its pairs.
    """

    title: ClassVar[str] = "KITTI 2015"
    name: Literal["kitti"]
    split: Literal["train", "val", "all"] = "train"
    occluded: bool = True
    """Flow to read: all pixels (flow_occ), or only pixels that are visible in the next frame too (flow_noc)."""

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair."""
        root = find_root(self.title, self.root, "training/image_2", below=["KITTI", "KittiFlow"]) / "training"
        frames, flows = root / "image_2", root / ("flow_occ" if self.occluded else "flow_noc")
        stems = images_by_stem(frames).keys() | images_by_stem(flows).keys()
        scenes = sorted({stem.rpartition("_")[0] for stem in stems if stem.endswith(("_10", "_11"))})
        wanted = {"train": (1, 2, 3, 4), "val": (0,), "all": (0, 1, 2, 3, 4)}[self.split]
        return [
            FlowPair(f"{s}_10", frames / f"{s}_10.png", frames / f"{s}_11.png", flows / f"{s}_10.png")
            for s in scenes
            if s.isdecimal() and int(s) % 5 in wanted
        ]
