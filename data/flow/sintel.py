"""MPI Sintel: an animated film with exact flow; 1041 training pairs of 436x1024 in 23 scenes, each in two passes.

Layout: training/{clean,final}/<scene>/frame_0001.png, training/flow/<scene>/frame_0001.flo, training/invalid.
Source: Butler, Wulff, Stanley and Black, "A Naturalistic Open Source Movie for Optical Flow Evaluation", ECCV 2012.
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

from data.files.listing import find_root, images_by_stem, subfolders
from data.flow.pairs import FlowConfig, FlowPair
from mtsp.text import natural_order

_FRAME = re.compile(r"frame_([0-9]{4})")
VAL_SCENES = frozenset({"alley_2", "ambush_6", "bandage_2", "cave_4", "market_6", "temple_2"})
"""The 6 of 23 scenes in val. The place of each scene also occurs in a training scene."""


class SintelConfig(FlowConfig):
    """Config of Sintel's training set (the test set has no public flow). Names are like "clean/alley_1/frame_0001".

    The release defines no split; here the scenes of :data:`VAL_SCENES` are val and the other scenes are train, so no
    frame of a val scene is used in training. If `training/invalid` exists, the pixels it marks have unknown flow.
    torchvision's Sintel is not used: its file lists are private, and it drops a missing frame silently.
    """

    title: ClassVar[str] = "Sintel"
    name: Literal["sintel"]
    split: Literal["train", "val", "all"] = "train"
    passes: tuple[Literal["clean", "final"], ...] = ("clean", "final")

    def pairs(self) -> list[FlowPair]:
        """Return the files of each pair."""
        root = find_root(self.title, self.root, "training/flow", below=["MPI-Sintel", "Sintel"]) / "training"
        folders = [root / kind for kind in ("flow", *self.passes)]
        scenes = {scene.name for folder in folders for scene in subfolders(folder)}
        chosen = [s for s in scenes if self.split == "all" or (s in VAL_SCENES) == (self.split == "val")]
        chosen.sort(key=natural_order)
        return [pair for which in dict.fromkeys(self.passes) for scene in chosen for pair in _pairs(root, which, scene)]


def _pairs(root: Path, which: str, scene: str) -> list[FlowPair]:
    """Return the pairs of one scene: each frame with flow, and the next frame. Only the last frame has no flow."""
    frames = images_by_stem(root / which / scene)
    numbers = {int(match[1]) for stem in frames if (match := _FRAME.fullmatch(stem))}
    files = (root / "flow" / scene).glob("*.flo")
    flows = {int(match[1]) for path in files if (match := _FRAME.fullmatch(path.stem))}
    starts = flows | {number for number in numbers if number + 1 in numbers}

    has_invalid = (root / "invalid").is_dir()
    pairs = []
    for number in sorted(starts):
        stem, following = f"frame_{number:04d}", f"frame_{number + 1:04d}"
        first, second = (frames.get(name, root / which / scene / f"{name}.png") for name in (stem, following))
        invalid = root / "invalid" / scene / f"{stem}.png" if has_invalid else None
        pairs.append(FlowPair(f"{which}/{scene}/{stem}", first, second, root / "flow" / scene / f"{stem}.flo", invalid))
    return pairs
